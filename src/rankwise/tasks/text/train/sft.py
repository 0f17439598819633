"""The task `sft`: texts to imitate, with the loss on the answers or on everything."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from rankwise.errors import DataError
from rankwise.sweeps.problem import Splits
from rankwise.tasks.settings import shared
from rankwise.tasks.text.data.examples import SftExample
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.joining import check_joining, join
from rankwise.tasks.text.encode.rendering import show_plain
from rankwise.tasks.text.encode.sft import SftOptions, as_chat, gap, tokenize_sft
from rankwise.tasks.text.encode.templates import writes_date
from rankwise.tasks.text.encode.tokens import Prepared, Tokenizer, text_config
from rankwise.tasks.text.model.models import TextModel, load_text_model
from rankwise.tasks.text.options import TextOptions
from rankwise.tasks.text.prompting import Prompting
from rankwise.tasks.text.score.vocabulary import TokenLoss, lean_head, row_loss
from rankwise.tasks.text.train.built_task import (
    SPLITS,
    BuiltTask,
    model_options,
    text_feed,
    texts_of,
    trained_inputs,
)
from rankwise.tasks.text.train.pooling import pooled_splits
from rankwise.train.data.tensors import pick

METRIC = "loss a token"


def ready_sft(options: TextOptions) -> BuiltTask:
    """Load the model, and make tensors of the texts.

    Raises:
        ConfigError: There is no such model, or it writes no text, or a template is missing.
        DataError: Nothing can be learnt from the texts.
    """
    examples, _ = texts_of(options)
    loaded = load_text_model(options.model, "sft", options=model_options(options))
    sft_options = SftOptions(**shared(options.form, SftOptions))
    parts: dict[str, Prepared] = {}
    first: list[Any] = list(examples.train[:1])
    for what, name in SPLITS.items():
        rows: list[Any] = list(getattr(examples, what))
        if not rows:
            raise DataError(f"The {name} data is empty.")
        parts[what] = tokenize_sft(
            rows, loaded.tokenizer, loaded.config, sft_options, name, skip_bad_lines=options.examples.skip_bad_lines
        )
    notes = [*examples.notes, *loaded.notes, *dict.fromkeys(note for part in parts.values() for note in part.notes)]
    tensors = {what: _tensors(part, loaded) for what, part in parts.items()}
    if options.form.join:
        check_joining(loaded.model, text_config(loaded.config).vocab_size)
        joined = join(parts["train"], max(map(max, (part.lengths() for part in parts.values()))))
        tensors["train"] = joined.data
        notes.append(joined.note)
    # Joined rows hold several examples, which no cut can part.
    pool = (
        (*parts["train"].rows, *parts["validation"].rows)
        if options.examples.validation is None and not options.form.join
        else ()
    )
    if pool:
        whole, n = _tensors(replace(parts["train"], rows=pool), loaded), len(parts["train"].rows)
        tensors["train"], tensors["validation"] = pick(whole, lambda t: t[:n]), pick(whole, lambda t: t[n:])
    placed = {what: {key: t.to(options.base.device) for key, t in data.items()} for what, data in tensors.items()}
    splits = Splits(placed["train"], placed["validation"], placed["test"])
    if pool:
        source = {example.line: example.source for example in (*examples.train, *examples.validation)}
        splits = pooled_splits(**placed, inputs=[source[row.line] for row in pool])
    example = {key: t[:2] for key, t in placed["validation"].items()}
    return BuiltTask(
        loaded=loaded,
        splits=splits,
        inputs=trained_inputs(examples, splits),
        feed=text_feed(TokenLoss(loaded.call, lean_head(loaded.model, loaded.call, example)), splits),
        loss=row_loss,
        metric=row_loss,
        metric_name=METRIC,
        higher_is_better=False,
        task_type="SEQ_2_SEQ_LM" if loaded.encoder_decoder else "CAUSAL_LM",
        notes=notes,
        examples={what: len(part.rows) for what, part in parts.items()},
        beside=_prompting(first[0], loaded.tokenizer, sft_options).save,
        example=show_plain(parts["train"].rows[0], loaded.tokenizer, loaded.encoder_decoder),
        pad_token=loaded.pad_token,
    )


def _prompting(example: SftExample, tokenizer: Tokenizer, sft_options: SftOptions) -> Prompting:
    """The prompt format of the examples, taken from the first."""
    if as_chat(example, tokenizer, sft_options):
        # The template itself, where it is not the tokenizer's own: its file may be gone tomorrow.
        own = tokenizer.chat_template if sft_options.chat_template is not None else None
        return Prompting(chat=True, chat_template=own, date=sft_options.date if writes_date(tokenizer) else None)
    return Prompting(separator=gap(example, sft_options))


def _tensors(prepared: Prepared, loaded: TextModel) -> dict[str, Tensor]:
    return as_tensors(prepared, shift=loaded.shift)
