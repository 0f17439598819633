"""Answers that the models of a sweep write to the prompts of validation and test rows, and their figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rankwise.errors import DataError
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.tasks.text.data.examples import Chat, PlainText, SftExample, has_more
from rankwise.tasks.text.encode.chat import answer_text
from rankwise.tasks.text.encode.sft import SftOptions
from rankwise.tasks.text.encode.templates import Template, chat_template
from rankwise.tasks.text.encode.tokens import IGNORED, Prepared
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.model.models import TextModel
from rankwise.tasks.text.model.writing import Writer
from rankwise.tasks.text.read.bad_lines import numbers
from rankwise.tasks.text.score.generated import group_references
from rankwise.tasks.text.score.text_counts import TextMetric
from rankwise.train.data.tensors import Data

COLUMN = "example"
"""The tensor of a data set that names the example of each row; models don't take it."""


@dataclass(frozen=True)
class Answers:
    """Prompts with the answers that are right, numbered as the rows' column has them.

    Args:
        examples: All of them; rows with one input share the first one's prompt and all answers.
        first: For each example the number of the first one with its input, in its data set.
        references: By the number of the first, the answers of the input.
        fits: For each example, whether the context has room for its prompt with an answer.
    """

    examples: Sequence[SftExample]
    first: Sequence[int]
    references: Mapping[int, Sequence[str]]
    fits: Sequence[bool]

    def representatives(self, rows: Data) -> Tensor:
        """The first row of each input that has room for an answer: (m,), rising."""
        seen: dict[int, int] = {}
        for place, number in enumerate(rows[COLUMN].tolist()):
            if self.fits[number]:
                seen.setdefault(self.first[number], place)
        return torch.tensor(sorted(seen.values()), dtype=torch.long)

    def of(self, rows: Data) -> tuple[list[SftExample], list[Sequence[str]]]:
        """Prompts and right answers of rows."""
        chosen = rows[COLUMN].tolist()
        return [self.examples[i] for i in chosen], [self.references[self.first[i]] for i in chosen]


def judged_by_answers(
    judged: TextMetric,
    sets: Sequence[Sequence[SftExample]],
    loaded: TextModel,
    way: SftOptions,
    how: Writing,
) -> tuple[ModelMetric, list[str]]:
    """A metric of the answers that a model writes, always taking the likeliest token.

    Args:
        judged: The figure of the answers.
        sets: The examples of the data sets, numbered one set after another in `COLUMN`; those that seeds cut anew are
            one set.
        loaded: The model.
        way: How prompts are written.
        how: How answers are.

    Returns:
        The metric, and what the user should be told.

    Raises:
        DataError: There are plain texts, which have no prompts; or no prompt of a set leaves room for an answer.
    """
    if any(isinstance(example, PlainText) for one in sets for example in one):
        raise DataError("Plain texts have no prompts to answer, so only the loss can judge them; leave out --metric.")
    writer = Writer(loaded, way, way.max_length)
    answers = _answers(sets, writer, how)
    long = [example.line for example, fits in zip(answers.examples, answers.fits, strict=True) if not fits]
    notes = [
        f"{judged.name} of answers of up to {how.max_new_tokens:,} tokens, one for each input, decides. Epochs are "
        "chosen by the loss, and so are learning rates where they are searched beforehand."
    ]
    if long:
        notes.append(
            f"{len(long):,} of {len(answers.examples):,} prompts leave no room for an answer of {how.max_new_tokens:,} "
            f"tokens in the context, and none is written: {numbers(long)}."
        )

    def measure(model: nn.Module, rows: Data) -> Tensor:
        prompts, references = answers.of(rows)
        asked = writer if model is loaded.model else replace(writer, loaded=replace(loaded, model=model))
        return judged.measure([text.strip() for text in asked.write(prompts, how)], references)

    return ModelMetric(measure, judged.of_sums, answers.representatives), notes


def _answers(sets: Sequence[Sequence[SftExample]], writer: Writer, how: Writing) -> Answers:
    template = Template(writer.loaded.tokenizer, writer.way.date)

    def answer(example: SftExample) -> str:
        return answer_text(template, example) if isinstance(example, Chat) and has_more(example) else example.answer

    first: list[int] = []
    references: dict[int, Sequence[str]] = {}
    fits: list[bool] = []
    for one in sets:
        with chat_template(writer.loaded.tokenizer, writer.way.chat_template):
            groups, right = group_references(one, [answer(example) for example in one])
        place = {id(example): len(first) + i for i, example in enumerate(one)}
        of_source = {example.source: place[id(example)] for example in groups}
        references |= {of_source[example.source]: own for example, own in zip(groups, right, strict=True)}
        first += [of_source[example.source] for example in one]
        room = [len(ids) <= writer.room(how) for ids in writer.tokens(one)]
        if not any(room):
            raise DataError(
                f"No prompt leaves room for an answer of {how.max_new_tokens:,} tokens in the context of "
                f"{writer.context:,}; make --max-new-tokens smaller."
            )
        fits += room
    return Answers([example for one in sets for example in one], first, references, fits)


def kept_examples(examples: Sequence[SftExample], prepared: Prepared) -> list[SftExample]:
    """The examples that the rows of tokens stand for, in their order."""
    by_line = {example.line: example for example in examples}
    return [by_line[row.line] for row in prepared.rows]


def longest_answer(prepared: Prepared) -> int:
    """Tokens of the longest answer: the limit of an answer where none is given."""
    return max(sum(label != IGNORED for label in row.labels) for row in prepared.rows)
