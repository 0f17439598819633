"""Texts that a language model writes, with an adapter or without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.tasks.text.data.examples import PromptPair, SftExample
from rankwise.tasks.text.data.prompts import check_text
from rankwise.tasks.text.encode.chat import answer_end
from rankwise.tasks.text.encode.sft import prompt_ids
from rankwise.tasks.text.encode.templates import Template, chat_template, has_template
from rankwise.tasks.text.encode.tokens import check_known, find_answer_context, find_context, reading_config
from rankwise.tasks.text.model.generation_settings import own_ends, own_settings_aside
from rankwise.tasks.text.read.bad_lines import BadLineError, numbers, usable
from rankwise.tasks.text.use.options import Writing
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


@torch.no_grad()
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
    loaded = adapted.loaded
    model: Any = loaded.model
    check_writes(adapted)
    prompted = _tokens(adapted, name, prompts)
    _check_room(adapted, prompts, prompted, writing)
    tokenizer, device = loaded.tokenizer, next(model.parameters()).device
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompted[i]))
    # The likeliest token always, or draws from the model's own probabilities.
    drawn: dict[str, Any] = (
        {"do_sample": True, "temperature": writing.temperature, "top_k": 0, "top_p": 1.0}
        if writing.temperature
        else {"do_sample": False}
    )
    ends = _ends(adapted, name)
    # A decoder's positions end where those of a causal model's prompt do, which have been looked at.
    longest = (
        find_answer_context(loaded.config, writing.max_new_tokens + 1) - 1
        if loaded.encoder_decoder
        else writing.max_new_tokens
    )
    with adapted.acting(name), own_settings_aside(model), torch.random.fork_rng():
        torch.manual_seed(writing.seed)
        for start in range(0, len(order), writing.batch_size):
            rows = order[start : start + writing.batch_size]
            batch = _filled([prompted[i] for i in rows], tokenizer.pad_token_id, left=not loaded.encoder_decoder)
            written = model.generate(
                **{key: value.to(device) for key, value in batch.items()},
                **drawn,
                **({"eos_token_id": ends} if ends else {}),
                max_new_tokens=longest,
                pad_token_id=tokenizer.pad_token_id,
            )
            given = 0 if loaded.encoder_decoder else batch["input_ids"].shape[1]
            texts = tokenizer.batch_decode(written[:, given:], skip_special_tokens=True)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
    return answers


def _tokens(adapted: ServedModel, name: str, prompts: Sequence[SftExample]) -> list[list[int]]:
    """The tokens of prompts as one adapter is asked.

    Raises:
        BadLineError: A prompt can't be written, or has a token beyond the model's vocabulary.
    """
    loaded, way = adapted.loaded, adapted.way(name)
    found: list[list[int]] = []
    with chat_template(loaded.tokenizer, way.chat_template):
        for prompt in prompts:
            ids = prompt_ids(prompt, loaded.tokenizer, way, encoder_decoder=loaded.encoder_decoder)
            if not ids:
                raise BadLineError(prompt.line, ": the prompt is empty; there is nothing to continue.")
            check_known(prompt.line, ids, loaded.tokenizer, reading_config(loaded.config))
            found.append(ids)
    return found


def _ends(adapted: ServedModel, name: str) -> list[int]:
    """The tokens after which an answer is over: the model's own, the tokenizer's, and what a conversation's answers end
    with, which training has taught."""
    loaded, way = adapted.loaded, adapted.way(name)
    found = [*own_ends(loaded.model, loaded.tokenizer), loaded.tokenizer.eos_token_id]
    with chat_template(loaded.tokenizer, way.chat_template):
        if way.chat is not False and has_template(loaded.tokenizer):
            found.append(answer_end(Template(loaded.tokenizer, way.date)))
    return sorted({token for token in found if token is not None})


def _filled(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> dict[str, Tensor]:
    """Rows of tokens side by side; what comes next stands at the end of each."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def _room(adapted: ServedModel, writing: Writing) -> int:
    return _context(adapted) - (0 if adapted.loaded.encoder_decoder else writing.max_new_tokens)


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
    place_of = {id(prompt): i for i, prompt in enumerate(prompts)}
    made, notes = usable(
        prompts,
        lambda prompt: max(len(_tokens(adapted, name, [prompt])[0]) for name in names),
        "prompts",
        skip=skip_bad_lines,
    )
    places = [place_of[id(prompt)] for prompt, n in made if n <= _room(adapted, writing)]
    long = [(prompt.line, n) for prompt, n in made if n > _room(adapted, writing)]
    if long:
        notes.append(
            f"{len(long):,} of {len(prompts):,} inputs have no room for an answer of "
            f"{writing.max_new_tokens:,} tokens in the context (the longest has {max(n for _, n in long):,}) "
            f"and none was written: {numbers([line for line, _ in long])}."
        )
    return places, notes


def _context(adapted: ServedModel) -> int:
    return find_context(reading_config(adapted.loaded.config), adapted.loaded.tokenizer, adapted.max_length)


def _check_room(
    adapted: ServedModel, prompts: Sequence[SftExample], prompted: Sequence[Sequence[int]], writing: Writing
) -> None:
    for prompt, ids in zip(prompts, prompted, strict=True):
        if len(ids) > _room(adapted, writing):
            which = "The prompt" if len(prompts) == 1 else f"The prompt of line {prompt.line}"
            raise ConfigError(
                f"{which} has {len(ids):,} tokens; with {writing.max_new_tokens} for the answer the context of "
                f"{_context(adapted):,} has no room for it. Make it shorter, or --max-new-tokens smaller."
            )
