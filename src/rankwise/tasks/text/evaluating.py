"""Figures of a base and its adapters on a file of examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import DataError
from rankwise.tasks.text.adapted import BASE, Adapted
from rankwise.tasks.text.bad_lines import usable
from rankwise.tasks.text.batches import as_tensors, trim
from rankwise.tasks.text.chat import answer_text
from rankwise.tasks.text.classify import tokenize_classify
from rankwise.tasks.text.examples import Chat, Plain, SftExample, has_more
from rankwise.tasks.text.forms import read_examples
from rankwise.tasks.text.generated import check_scorers, group_references, score_texts
from rankwise.tasks.text.generating import Writing, check_writes, with_room, write_texts
from rankwise.tasks.text.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.metrics import classify_figures, perplexity_of
from rankwise.tasks.text.sft import tokenize_sft
from rankwise.tasks.text.sources import read_records
from rankwise.tasks.text.subset import drawn
from rankwise.tasks.text.templates import Template, chat_template
from rankwise.tasks.text.tokens import text_config
from rankwise.tasks.text.vocabulary import TokenLoss, lean_head, row_loss

Figures = dict[str, float]

TOKENS_AT_ONCE = 1 << 13

NUMBERS_AT_ONCE = 1 << 26
"""Logits that a pass may give where all are made: 256 MiB in float32."""

SEED = 0
"""Of draws: a sweep's own, so that both use the same test examples."""


def evaluate_texts(
    adapted: Adapted,
    data: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    skip_bad_lines: bool = False,
    limit: int | None = None,
    generate: int = 0,
    writing: Writing | None = None,
) -> tuple[dict[str, Figures], list[str]]:
    """Figures of the base and of each adapter on examples.

    Args:
        adapted: Model and adapters.
        data: A file, or a hub name.
        columns: Role -> column, where a column is not called as its role.
        split: Of a hub data set.
        skip_bad_lines: Leave out what can't be read, and say so.
        limit: How many examples are used at the most, drawn as a sweep draws its test examples; None for all.
        generate: For so many inputs, drawn from the whole file, answers are written and held against all references
            of the input; 0 for none.
        writing: How they are written.

    Returns:
        Name -> figure -> value, the base first, unless its head is not trained; and what the user should be told.

    Raises:
        ConfigError: The adapters were trained in ways whose figures can't be compared; answers are asked of a
            classifier, or what scores them is not installed.
        DataError: The file can't be read, or its labels are unknown.
    """
    records = read_records(data, split=split, skip_bad_lines=skip_bad_lines)
    labels = adapted.labels
    several = labels is not None and labels.kind == "several"
    examples, notes = read_examples(
        records,
        adapted.task,
        columns,
        several=several,
        places=len(labels.names) if labels is not None and labels.places else None,
        skip_bad_lines=skip_bad_lines,
    )
    if not examples:
        raise DataError(f"{data} has no examples.")
    notes = [*adapted.notes, *records.notes, *notes]
    if generate:
        _check_written(adapted, examples)
    names = [*([] if adapted.loaded.new_head else [BASE]), *adapted.names]
    rows: list[Any] = list(examples)
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in drawn(rows, limit, SEED, "test")]
        notes.append(f"{limit:,} of {len(examples):,} examples are used, drawn with seed {SEED}.")
    if adapted.task == "classify":
        found, said = _classify(adapted, names, rows, skip_bad_lines)
        return found, [*notes, *said]
    found, said = _sft(adapted, names, rows, skip_bad_lines)
    if generate:
        more, also = _written(adapted, names, examples, generate, writing or Writing(), skip_bad_lines)
        found = {name: own | more.get(name, {}) for name, own in found.items()}
        said = [*said, *also]
    return found, [*notes, *said]


def _classify(
    adapted: Adapted, names: Sequence[str], rows: Sequence[Any], skip: bool
) -> tuple[dict[str, Figures], Sequence[str]]:
    loaded, labels = adapted.loaded, adapted.labels
    if labels is None:
        raise DataError("There are no labels to compare with.")
    longest = adapted.one_way().max_length
    prepared = tokenize_classify(rows, labels, loaded.tokenizer, loaded.config, "test", longest, skip_bad_lines=skip)
    found: dict[str, Figures] = {}
    for name in names:
        parts = [(own, outputs.float()) for own, outputs in _passes(adapted, name, prepared.data, loaded.call, 1)]
        order = torch.cat([own for own, _ in parts]).argsort()
        outputs = torch.cat([part for _, part in parts])[order]
        loss = CLASSIFY_LOSSES[labels.kind](outputs, prepared.data)
        mean = loss if isinstance(loss, Tensor) else loss[0] / loss[1]
        figures = classify_figures(outputs, prepared.data["labels"], labels.kind)
        found[name] = {"loss": float(mean.mean()), **{key: float(value) for key, value in figures.items()}}
    return found, prepared.notes


def _sft(
    adapted: Adapted, names: Sequence[str], rows: Sequence[Any], skip: bool
) -> tuple[dict[str, Figures], Sequence[str]]:
    loaded = adapted.loaded
    prepared = tokenize_sft(rows, loaded.tokenizer, loaded.config, adapted.one_way(), skip_bad_lines=skip)
    data = as_tensors(prepared, shift=loaded.shift)
    device = next(loaded.model.parameters()).device
    found: dict[str, Figures] = {}
    for name in names:
        total = count = 0.0
        with adapted.acting(name):
            head = lean_head(loaded.model, loaded.call, {key: value[:2].to(device) for key, value in data.items()})
        numbers = 1 if head is not None else text_config(loaded.config).vocab_size
        for _, outputs in _passes(adapted, name, data, TokenLoss(loaded.call, head), numbers):
            sums, counts = row_loss(outputs, {})
            total, count = total + float(sums.double().sum()), count + float(counts.sum())
        found[name] = {"loss": total / count, "perplexity": perplexity_of(total / count)}
    return found, prepared.notes


def _check_written(adapted: Adapted, examples: Sequence[Any]) -> None:
    """Find what stands against writing answers, before anything is computed."""
    check_writes(adapted)
    check_scorers()
    if any(isinstance(example, Plain) for example in examples):
        raise DataError("Plain texts have no prompts to answer; leave out --generate.")


def _written(
    adapted: Adapted, names: Sequence[str], examples: Sequence[Any], n: int, writing: Writing, skip: bool
) -> tuple[dict[str, Figures], list[str]]:
    """Figures of answers to n inputs, those left out that have no room for one."""
    template = Template(adapted.loaded.tokenizer, adapted.way(BASE).date)

    def answer_of(example: SftExample) -> str:
        if isinstance(example, Chat) and has_more(example):
            return answer_text(template, example)
        return example.answer

    with chat_template(adapted.loaded.tokenizer, adapted.way(BASE).chat_template):
        made, _ = usable(examples, answer_of, "examples", skip=skip)
    inputs, answers = group_references([example for example, _ in made], [answer for _, answer in made])
    places = drawn(inputs, n, SEED, "generate")
    fitting, said = with_room(adapted, [BASE], [inputs[i] for i in places], writing, skip_bad_lines=skip)
    places = [places[i] for i in fitting]
    prompts, references = [inputs[i] for i in places], [answers[i] for i in places]
    counted = f"with {sum(map(len, references)):,} references"
    said.append(f"Answers were written for {len(prompts):,} of {len(inputs):,} inputs, {counted}.")
    found: dict[str, Figures] = {}
    for name in names if prompts else ():
        written = write_texts(adapted, name, prompts, writing)
        found[name] = score_texts([text.strip() for text in written], references)
    return found, said


def _passes(
    adapted: Adapted,
    name: str,
    data: Mapping[str, Tensor],
    call: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    numbers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the model over a data set, alike lengths together: places of the rows, and their outputs, on the CPU.

    Args:
        adapted: The model.
        name: Which adapter acts.
        data: The data set.
        call: (model, batch) -> outputs.
        numbers: That it makes for each token.
    """
    model = adapted.loaded.model
    device = next(model.parameters()).device
    lengths = data["attention_mask"].sum(-1)
    order = lengths.argsort(stable=True)
    width = data["input_ids"].shape[1]
    at_once = max(1, min(TOKENS_AT_ONCE, NUMBERS_AT_ONCE // numbers) // width)
    with adapted.acting(name):
        for own in order.split(at_once):
            batch = trim({key: value[own].to(device) for key, value in data.items()})
            # Not around the whole: a generator would leave gradients off between its values.
            with torch.no_grad():
                outputs = call(model, batch)
            yield own, outputs.cpu()
