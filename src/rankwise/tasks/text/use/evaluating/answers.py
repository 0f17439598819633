"""Figures of answers that language models write themselves."""

from collections.abc import Sequence
from typing import Any

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Chat, PlainText, SftExample, has_more
from rankwise.tasks.text.data.subset import drawn
from rankwise.tasks.text.encode.chat import answer_text
from rankwise.tasks.text.encode.templates import Template, chat_template
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.read.bad_lines import usable
from rankwise.tasks.text.score.generated import check_scorers, group_references, score_texts
from rankwise.tasks.text.use.evaluating.result import SEED, Figures
from rankwise.tasks.text.use.generating import check_writes, with_room, write_texts
from rankwise.tasks.text.use.served import BASE_NAME, ServedModel


def check_answers(adapted: ServedModel, examples: Sequence[Any]) -> None:
    """Find what stands against writing answers, before anything is computed.

    Raises:
        ConfigError: The model is a classifier, or what scores answers is not installed.
        DataError: The examples have no prompts.
    """
    check_writes(adapted)
    check_scorers()
    if any(isinstance(example, PlainText) for example in examples):
        raise DataError("Plain texts have no prompts to answer; leave out --generate.")


def evaluate_answers(
    adapted: ServedModel, names: Sequence[str], examples: Sequence[Any], n: int, writing: Writing, skip: bool
) -> tuple[dict[str, Figures], list[str]]:
    """Figures of answers to n inputs, those left out that have no room for one, and notes.

    Args:
        adapted: Model and adapters.
        names: Of those that write.
        examples: Prompts with completions, or chats; several of one input are its references.
        n: Inputs to draw.
        writing: How answers are written.
        skip: Whether examples that can't be used are left out.
    """
    template = Template(adapted.loaded.tokenizer, adapted.way(BASE_NAME).date)

    def answer_of(example: SftExample) -> str:
        if isinstance(example, Chat) and has_more(example):
            return answer_text(template, example)
        return example.answer

    with chat_template(adapted.loaded.tokenizer, adapted.way(BASE_NAME).chat_template):
        made, _ = usable(examples, answer_of, "examples", skip=skip)
    inputs, answers = group_references([example for example, _ in made], [answer for _, answer in made])
    places = drawn(inputs, n, SEED, "generate")
    fitting, notes = with_room(adapted, [BASE_NAME], [inputs[i] for i in places], writing, skip_bad_lines=skip)
    places = [places[i] for i in fitting]
    prompts, references = [inputs[i] for i in places], [answers[i] for i in places]
    counted = f"with {sum(map(len, references)):,} references"
    notes.append(f"Answers were written for {len(prompts):,} of {len(inputs):,} inputs, {counted}.")
    found: dict[str, Figures] = {}
    for name in names if prompts else ():
        written = write_texts(adapted, name, prompts, writing)
        found[name] = score_texts([text.strip() for text in written], references)
    return found, notes
