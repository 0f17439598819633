"""The task `sft`: texts to imitate, with the loss on the answers or on everything."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import DataError
from rankwise.pack.batches import mapped
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.sweeps.problem import Splits
from rankwise.tasks.settings import shared
from rankwise.tasks.text.data.examples import SftExample
from rankwise.tasks.text.data.splits import ExampleSplits
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.joining import check_joining, join
from rankwise.tasks.text.encode.rendering import show_plain
from rankwise.tasks.text.encode.sft import SftOptions, as_chat, gap, tokenize_sft
from rankwise.tasks.text.encode.templates import writes_date
from rankwise.tasks.text.encode.tokens import Prepared, Tokenizer, text_config
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.model.models import TextModel, load_text_model
from rankwise.tasks.text.options import TextOptions
from rankwise.tasks.text.prompting import Prompting
from rankwise.tasks.text.score.generated import check_scorers
from rankwise.tasks.text.score.text_counts import TextMetric, text_metric_of
from rankwise.tasks.text.score.vocabulary import TokenLoss, lean_head, row_loss
from rankwise.tasks.text.train.answers import COLUMN, judged_by_answers, kept_examples, longest_answer
from rankwise.tasks.text.train.built_task import (
    SPLITS,
    BuiltTask,
    model_options,
    text_feed,
    texts_of,
    trained_inputs,
)
from rankwise.tasks.text.train.pooling import pooled_splits

METRIC = "loss a token"


def ready_sft(options: TextOptions) -> BuiltTask:
    """Load the model, and make tensors of the texts.

    Raises:
        ConfigError: There is no such model, or it writes no text, or a template is missing.
        DataError: Nothing can be learnt from the texts.
    """
    judged = text_metric_of(options.form.metric)
    if judged is not None:
        check_scorers()
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
    cuts = options.examples.validation is None and not options.form.join
    pool = (*parts["train"].rows, *parts["validation"].rows) if cuts else ()
    if pool:
        whole, n = _tensors(replace(parts["train"], rows=pool), loaded), len(parts["train"].rows)
        tensors["train"], tensors["validation"] = mapped(whole, lambda t: t[:n]), mapped(whole, lambda t: t[n:])
    written = None
    if judged is not None:
        written, warnings = _judged_by_answers(
            judged, examples, parts, tensors, loaded, sft_options, options, pooled=bool(pool)
        )
        notes += warnings
    placed = {what: {key: t.to(options.base.device) for key, t in data.items()} for what, data in tensors.items()}
    splits = Splits(placed["train"], placed["validation"], placed["test"])
    if pool:
        source = {example.line: example.source for example in (*examples.train, *examples.validation)}
        splits = pooled_splits(**placed, inputs=[source[row.line] for row in pool])
    example = {key: t[:2] for key, t in placed["validation"].items() if key != COLUMN}
    return BuiltTask(
        loaded=loaded,
        splits=splits,
        inputs=trained_inputs(examples, splits),
        feed=text_feed(TokenLoss(loaded.call, lean_head(loaded.model, loaded.call, example)), splits),
        loss=row_loss,
        metric=row_loss,
        metric_name=METRIC if judged is None else judged.name,
        higher_is_better=judged is not None,
        model_metric=written,
        loss_name=METRIC,
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


def _judged_by_answers(
    judged: TextMetric,
    examples: ExampleSplits,
    parts: Mapping[str, Prepared],
    tensors: dict[str, dict[str, Tensor]],
    loaded: TextModel,
    how: SftOptions,
    options: TextOptions,
    *,
    pooled: bool,
) -> tuple[ModelMetric, list[str]]:
    """A metric of written answers, and notes; the data sets get a column that names each row's example."""
    sets = [["train", "validation"] if pooled else ["validation"], ["test"]]
    kept = {part: kept_examples(getattr(examples, part), parts[part]) for one in sets for part in one}
    start = 0
    for part, of in kept.items():
        tensors[part] = {**tensors[part], COLUMN: torch.arange(start, start + len(of))}
        start += len(of)
    longest = options.form.max_new_tokens or max(map(longest_answer, parts.values()))
    writing = Writing(max_new_tokens=longest, batch_size=options.training.batch_size)
    return judged_by_answers(
        judged, [[example for part in one for example in kept[part]] for one in sets], loaded, how, writing
    )


def _tensors(prepared: Prepared, loaded: TextModel) -> dict[str, Tensor]:
    return as_tensors(prepared, shift=loaded.shift)
