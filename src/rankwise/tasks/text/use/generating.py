"""Texts that a base with saved adapters writes, with one of them or without."""

from collections.abc import Sequence

from rankwise.errors import ConfigError
from rankwise.tasks.text.data.examples import PromptPair, SftExample
from rankwise.tasks.text.data.prompts import check_text
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.model.writing import Writer
from rankwise.tasks.text.read.bad_lines import numbers, usable
from rankwise.tasks.text.use.served import ServedModel


def as_prompt(text: str, line: int = 1) -> PromptPair:
    """A prompt without its answer.

    Raises:
        BadLineError: It is no text that can be written as UTF-8.
    """
    check_text(line, text)
    return PromptPair(line, text, "")


def check_writes(adapted: ServedModel) -> None:
    """Refuse a model that writes nothing.

    Raises:
        ConfigError: It is a classifier.
    """
    if adapted.task != "sft":
        raise ConfigError("A classifier writes no text; rankwise evaluate tells what it says.")


def write_texts(adapted: ServedModel, name: str, prompts: Sequence[SftExample], writing: Writing) -> list[str]:
    """Generate the model's answer to each prompt.

    Args:
        adapted: The model.
        name: Which adapter acts, or `BASE`.
        prompts: Examples, whose answers are not read.
        writing: How.

    Returns:
        The answers, in the order of the prompts.

    Raises:
        ConfigError: It is a classifier; or a prompt and its answer don't fit into the context.
        DataError: A prompt can't be written, or has a token beyond the model's vocabulary.
    """
    check_writes(adapted)
    with adapted.acting(name):
        return _writer(adapted, name).write(prompts, writing)


def _writer(adapted: ServedModel, name: str) -> Writer:
    return Writer(adapted.loaded, adapted.way(name), adapted.max_length)


def with_room(
    adapted: ServedModel,
    names: Sequence[str],
    prompts: Sequence[SftExample],
    writing: Writing,
    *,
    skip_bad_lines: bool = False,
) -> tuple[list[int], list[str]]:
    """The prompts that fit into the context together with their answer, whoever of `names` is asked.

    Args:
        adapted: The model.
        names: Who is asked, each in its own way.
        prompts: Examples, whose answers are not read.
        writing: How answers are written.
        skip_bad_lines: Leave out prompts that can't be written, and say so, instead of refusing them.

    Returns:
        Their places, and notes for the user of the others.

    Raises:
        DataError: Prompts can't be written, or have a token beyond the model's vocabulary.
    """
    writers = [_writer(adapted, name) for name in names]
    room = writers[0].room(writing)
    place_of = {id(prompt): i for i, prompt in enumerate(prompts)}
    made, notes = usable(
        prompts,
        lambda prompt: max(len(writer.tokens([prompt])[0]) for writer in writers),
        "prompts",
        skip=skip_bad_lines,
    )
    places = [place_of[id(prompt)] for prompt, n in made if n <= room]
    long = [(prompt.line, n) for prompt, n in made if n > room]
    if long:
        notes.append(
            f"{len(long):,} of {len(prompts):,} inputs have no room for an answer of "
            f"{writing.max_new_tokens:,} tokens in the context (the longest has {max(n for _, n in long):,}) "
            f"and none was written: {numbers([line for line, _ in long])}."
        )
    return places, notes
