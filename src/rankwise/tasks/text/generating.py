"""Texts that a language model writes, with an adapter or without."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.adapted import Adapted
from rankwise.tasks.text.chat import answer_end, chat_template, has_template
from rankwise.tasks.text.examples import Pair, SftExample
from rankwise.tasks.text.sft import prompt_ids
from rankwise.tasks.text.sources import NAMED
from rankwise.tasks.text.tokens import check_known, find_context, text_config

LIKELIEST: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "num_beams": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
}
"""The likeliest token always, whatever a model's own configuration would rather do."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are written.

    Args:
        max_new_tokens: The most tokens of an answer.
        temperature: 0 takes the likeliest token always; above, tokens are drawn.
        seed: Of the draws.
        batch_size: Prompts at once.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for what, value in (("max-new-tokens", self.max_new_tokens), ("batch-size", self.batch_size)):
            if value < 1:
                raise ConfigError(f"--{what} is {value}; it must be a whole number of at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature is {self.temperature}; it is 0 or a positive number, such as 0.7.")


def as_prompt(text: str, line: int = 1) -> Pair:
    """A prompt without its answer."""
    return Pair(line, text, "")


def check_writes(adapted: Adapted) -> None:
    """Refuse a model that writes nothing.

    Raises:
        ConfigError: It is a classifier.
    """
    if adapted.task != "sft":
        raise ConfigError("A classifier writes no text; rankwise evaluate tells what it says.")


@torch.no_grad()
def write_texts(adapted: Adapted, name: str, prompts: Sequence[SftExample], how: Writing) -> list[str]:
    """What the model answers to each prompt.

    Args:
        adapted: The model.
        name: Which adapter acts, or `BASE`.
        prompts: Examples, whose answers are not read.
        how: How.

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
    _check_room(adapted, prompts, prompted, how)
    tokenizer, device = loaded.tokenizer, next(model.parameters()).device
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompted[i]))
    drawn: dict[str, Any] = {"do_sample": True, "temperature": how.temperature} if how.temperature else {}
    ends = _ends(adapted, name)
    with adapted.acting(name), torch.random.fork_rng():
        torch.manual_seed(how.seed)
        for start in range(0, len(order), how.batch_size):
            rows = order[start : start + how.batch_size]
            batch = _filled([prompted[i] for i in rows], tokenizer.pad_token_id, left=not loaded.encoder_decoder)
            written = model.generate(
                **{key: value.to(device) for key, value in batch.items()},
                **(LIKELIEST | drawn),
                **({"eos_token_id": ends} if ends else {}),
                max_new_tokens=how.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            given = 0 if loaded.encoder_decoder else batch["input_ids"].shape[1]
            texts = tokenizer.batch_decode(written[:, given:], skip_special_tokens=True)
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
    return answers


def _tokens(adapted: Adapted, name: str, prompts: Sequence[SftExample]) -> list[list[int]]:
    loaded, way = adapted.loaded, adapted.way(name)
    with chat_template(loaded.tokenizer, way.chat_template):
        return [prompt_ids(p, loaded.tokenizer, way, encoder_decoder=loaded.encoder_decoder) for p in prompts]


def _ends(adapted: Adapted, name: str) -> list[int]:
    """The tokens after which an answer is over: the model's own, the tokenizer's, and what a conversation's answers end
    with, which training has taught."""
    loaded, way = adapted.loaded, adapted.way(name)
    model: Any = loaded.model
    own = model.generation_config.eos_token_id
    found = [*(own if isinstance(own, list) else [own]), loaded.tokenizer.eos_token_id]
    with chat_template(loaded.tokenizer, way.chat_template):
        if way.chat is not False and has_template(loaded.tokenizer):
            found.append(answer_end(loaded.tokenizer))
    return sorted({token for token in found if token is not None})


def _filled(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> dict[str, Tensor]:
    """Rows of tokens side by side; what comes next stands at the end of each."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def without_room(adapted: Adapted, name: str, prompts: Sequence[SftExample], how: Writing) -> dict[int, int]:
    """The prompts that don't fit into the context together with their answer.

    Args:
        adapted: The model.
        name: The adapter that is asked, in its own way.
        prompts: Examples, whose answers are not read.
        how: How answers are written.

    Returns:
        Place among the prompts -> how many tokens it has.

    Raises:
        DataError: A prompt can't be written, or has a token beyond the model's vocabulary.
    """
    return _too_long(adapted, prompts, _tokens(adapted, name, prompts), how)


def _too_long(
    adapted: Adapted, prompts: Sequence[SftExample], prompted: Sequence[Sequence[int]], how: Writing
) -> dict[int, int]:
    loaded = adapted.loaded
    room, config = _context(adapted) - (0 if loaded.encoder_decoder else how.max_new_tokens), text_config(loaded.config)
    for prompt, ids in zip(prompts, prompted, strict=True):
        if not ids:
            raise DataError(f"The prompt of line {prompt.line} is empty; there is nothing to go on from.")
        check_known(prompt.line, ids, loaded.tokenizer, config)
    return {i: len(ids) for i, ids in enumerate(prompted) if len(ids) > room}


def with_room(
    adapted: Adapted, names: Sequence[str], prompts: Sequence[SftExample], how: Writing
) -> tuple[list[int], list[str]]:
    """The prompts that fit into the context together with their answer, whoever of `names` is asked.

    Returns:
        Their places, and what the user should be told of the others.

    Raises:
        DataError: A prompt can't be written, or has a token beyond the model's vocabulary.
    """
    long = {i: n for name in names for i, n in without_room(adapted, name, prompts, how).items()}
    places = [i for i in range(len(prompts)) if i not in long]
    if not long:
        return places, []
    lines = [prompts[i].line for i in sorted(long)]
    shown = ", ".join(map(str, lines[:NAMED])) + (", ..." if len(lines) > NAMED else "")
    return places, [
        f"{len(long):,} of {len(prompts):,} inputs have no room for an answer of {how.max_new_tokens:,} tokens in the "
        f"context (the longest has {max(long.values()):,}) and none was written: line {shown}."
    ]


def _context(adapted: Adapted) -> int:
    return find_context(text_config(adapted.loaded.config), adapted.loaded.tokenizer, adapted.max_length)


def _check_room(
    adapted: Adapted, prompts: Sequence[SftExample], prompted: Sequence[Sequence[int]], how: Writing
) -> None:
    for i, n in _too_long(adapted, prompts, prompted, how).items():
        which = "The prompt" if len(prompts) == 1 else f"The prompt of line {prompts[i].line}"
        raise ConfigError(
            f"{which} has {n:,} tokens; with {how.max_new_tokens} for the answer the context of "
            f"{_context(adapted):,} has no room for it. Make it shorter, or --max-new-tokens smaller."
        )
