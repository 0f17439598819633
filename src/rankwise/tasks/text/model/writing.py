"""Texts that a language model writes to prompts, with whatever weights it has now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.tasks.text.data.examples import SftExample
from rankwise.tasks.text.encode.chat import answer_end
from rankwise.tasks.text.encode.sft import SftOptions, prompt_ids
from rankwise.tasks.text.encode.templates import Template, chat_template, has_template
from rankwise.tasks.text.encode.tokens import check_known, find_answer_context, find_context, reading_config
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.model.generation_settings import own_ends, own_settings_aside
from rankwise.tasks.text.model.models import TextModel
from rankwise.tasks.text.read.bad_lines import BadLineError


@dataclass(frozen=True)
class Writer:
    """A language model that answers prompts.

    Args:
        loaded: The model; which adapter acts is the caller's business.
        way: How prompts are written.
        max_length: The most tokens of a prompt with its answer; None takes the model's context.
    """

    loaded: TextModel
    way: SftOptions
    max_length: int | None = None

    @property
    def context(self) -> int:
        """The most tokens of a prompt with its answer."""
        return find_context(reading_config(self.loaded.config), self.loaded.tokenizer, self.max_length)

    def room(self, how: Writing) -> int:
        """The most tokens of a prompt."""
        return self.context - (0 if self.loaded.encoder_decoder else how.max_new_tokens)

    def tokens(self, prompts: Sequence[SftExample]) -> list[list[int]]:
        """The tokens of prompts.

        Raises:
            BadLineError: A prompt can't be written, or has a token beyond the model's vocabulary.
        """
        loaded, way = self.loaded, self.way
        found: list[list[int]] = []
        with chat_template(loaded.tokenizer, way.chat_template):
            for prompt in prompts:
                ids = prompt_ids(prompt, loaded.tokenizer, way, encoder_decoder=loaded.encoder_decoder)
                if not ids:
                    raise BadLineError(prompt.line, ": the prompt is empty; there is nothing to continue.")
                check_known(prompt.line, ids, loaded.tokenizer, reading_config(loaded.config))
                found.append(ids)
        return found

    @torch.no_grad()
    def write(self, prompts: Sequence[SftExample], how: Writing) -> list[str]:
        """What the model answers to each prompt.

        Args:
            prompts: Examples, whose answers are not read.
            how: How.

        Returns:
            The answers, in the order of the prompts.

        Raises:
            ConfigError: A prompt and its answer don't fit into the context.
            DataError: A prompt can't be written, or has a token beyond the model's vocabulary.
        """
        loaded = self.loaded
        model: Any = loaded.model
        prompted = self.tokens(prompts)
        self._check_room(prompts, prompted, how)
        tokenizer, device = loaded.tokenizer, next(model.parameters()).device
        answers = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompted[i]))
        # The likeliest token always, or draws from the model's own probabilities.
        drawn: dict[str, Any] = (
            {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
            if how.temperature
            else {"do_sample": False}
        )
        ends = self._ends()
        # A decoder's positions end where those of a causal model's prompt do, which have been looked at.
        longest = (
            find_answer_context(loaded.config, how.max_new_tokens + 1) - 1
            if loaded.encoder_decoder
            else how.max_new_tokens
        )
        with own_settings_aside(model), torch.random.fork_rng():
            torch.manual_seed(how.seed)
            for start in range(0, len(order), how.batch_size):
                rows = order[start : start + how.batch_size]
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

    def _ends(self) -> list[int]:
        """The tokens after which an answer is over: the model's own, the tokenizer's, and what a conversation's answers
        end with, which training has taught."""
        loaded, way = self.loaded, self.way
        found = [*own_ends(loaded.model, loaded.tokenizer), loaded.tokenizer.eos_token_id]
        with chat_template(loaded.tokenizer, way.chat_template):
            if way.chat is not False and has_template(loaded.tokenizer):
                found.append(answer_end(Template(loaded.tokenizer, way.date)))
        return sorted({token for token in found if token is not None})

    def _check_room(self, prompts: Sequence[SftExample], prompted: Sequence[Sequence[int]], how: Writing) -> None:
        for prompt, ids in zip(prompts, prompted, strict=True):
            if len(ids) > self.room(how):
                which = "The prompt" if len(prompts) == 1 else f"The prompt of line {prompt.line}"
                raise ConfigError(
                    f"{which} has {len(ids):,} tokens; with {how.max_new_tokens} for the answer the context of "
                    f"{self.context:,} has no room for it. Make it shorter, or --max-new-tokens smaller."
                )


def _filled(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> dict[str, Tensor]:
    """Rows of tokens side by side; what comes next stands at the end of each."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}
