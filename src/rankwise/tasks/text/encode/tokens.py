"""Examples as token numbers, and what had to be done to make them so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.read.bad_lines import BadLineError

IGNORED = -100
"""The label of a token that carries no loss, as in transformers and `torch.nn.functional.cross_entropy`."""

Tokenizer = Any
"""A tokenizer of transformers, which loads only when a task runs."""


@dataclass(frozen=True)
class Tokens:
    """One example.

    Args:
        line: Its line in the file.
        ids: What the model reads.
        labels: Beside each of `ids` the token itself, or `IGNORED` where it carries no loss (the first
            never does).
            For an encoder-decoder, the answer's tokens.
    """

    line: int
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Prepared:
    """Examples ready for batches.

    Args:
        rows: The examples, in their order.
        pad_id: The token that fills rows up; it is distinguished from others by the mask, never by its number.
        encoder_decoder: Whether labels are their own sequence.
        notes: Notes for the user.
    """

    rows: tuple[Tokens, ...]
    pad_id: int
    encoder_decoder: bool = False
    notes: tuple[str, ...] = ()

    def lengths(self) -> list[int]:
        """Tokens of each example, the longer side of an encoder-decoder's."""
        return [max(len(row.ids), len(row.labels)) for row in self.rows]


def pad_token_of(tokenizer: Tokenizer, size: int | None = None) -> tuple[int, str | None]:
    """The number of the token to fill rows up with, and a note where the tokenizer had none of its own.

    Args:
        tokenizer: The tokenizer.
        size: How many tokens the model knows: one beyond has no embedding to be masked. None where that is seen to.

    Any token does, because the mask hides it; the tokenizer is given it too, so that what is generated in batches is
    filled up alike.
    """
    note = None
    own = tokenizer.pad_token_id
    if own is None or (size is not None and own >= size):
        others = (tokenizer.eos_token_id, tokenizer.unk_token_id)
        token = tokenizer.convert_ids_to_tokens(
            next((i for i in others if i is not None and (not size or i < size)), 0)
        )
        tokenizer.pad_token = token
        lacking = "" if own is None else " that the model knows"
        note = f'The tokenizer has no token for padding{lacking}; rows are filled up with "{token}", masked.'
    pad_id: int = tokenizer.convert_tokens_to_ids(tokenizer.pad_token)
    return pad_id, note


def text_config(config: Any) -> Any:
    """The text part of a model's configuration: all of it unless the model also takes images."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def reading_config(config: Any) -> Any:
    """The configuration of the reading model: for an encoder-decoder made of two models, the encoder's."""
    encoder = getattr(config, "encoder", None)
    return encoder if hasattr(encoder, "get_text_config") else text_config(config)


def check_known(line: int, ids: Sequence[int], tokenizer: Tokenizer, config: Any) -> None:
    """Refuse an example with a token that the model has no embedding for.

    Args:
        line: Where the example stands.
        ids: Its tokens.
        tokenizer: What made them.
        config: The model's configuration.

    Raises:
        BadLineError: A token's number is as large as the model's vocabulary, or larger.
    """
    size = getattr(config, "vocab_size", None)
    if size is not None and ids and max(ids) >= size:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise BadLineError(
            line,
            f' has the token "{token}" of number {max(ids):,}, and the model knows {size:,} tokens; '
            "leave that text out, or take the tokenizer that belongs to the model.",
        )


_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_encoder_position_embeddings")
"""Configurations' names of the most tokens that the model reads."""

_ANSWERS = ("max_decoder_position_embeddings", "max_target_positions")
"""What those of encoder-decoders call the most tokens that it writes, where that is another number."""


def find_answer_context(config: Any, context: int) -> int:
    """The most tokens of an encoder-decoder's answer.

    Args:
        config: The model's configuration, all of it.
        context: The most tokens that it reads, or that were asked for.
    """
    of_decoder = text_config(config)
    names = _ANSWERS if reading_config(config) is of_decoder else (*_CONTEXTS, *_ANSWERS)
    limits = [n for name in names if isinstance(n := getattr(of_decoder, name, None), int) and n > 0]
    return min([context, *limits])


def find_context(config: Any, tokenizer: Tokenizer, asked: int | None = None) -> int:
    """The most tokens an example may have: what was asked for, else the model's context.

    Args:
        config: The model's configuration.
        tokenizer: Its tokenizer; one that knows no limit has an astronomic one.
        asked: What the user asked for.

    Raises:
        ConfigError: More was asked for than the model can read, or less than 2.
    """
    known = [getattr(config, name, None) for name in _CONTEXTS]
    short = _short_context(config)
    known.append(short)
    limits = [n for n in (*known, tokenizer.model_max_length) if isinstance(n, int) and 0 < n < 1 << 30]
    most = min(limits, default=None)
    if asked is None:
        # T5's relative positions have no limit; this is what it was trained with.
        return most or 512
    if asked < 2 or (most is not None and asked > most):
        why = (
            " (beyond that the positions of all rows of a batch change with its longest, so rows are not computed each "
            "on its own)"
            if short is not None and most == short
            else ""
        )
        raise ConfigError(f"--max-length is {asked:,}; this model takes 2 to {most or 'any number of':,} tokens{why}.")
    return asked


def _short_context(config: Any) -> int | None:
    """The length up to which a model with two sets of rotary frequencies uses the first; None where it has one.

    Beyond it the longest row of a batch decides for all rows (LongRoPE: Phi-3 and 3.5).
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, Mapping))]
    found = [
        kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type", kind.get("type")) in ("longrope", "su")
    ]
    return min((n for n in found if isinstance(n, int)), default=None)


@dataclass
class Truncation:
    """Cuts examples to the context and counts what that cost.

    Args:
        context: The most tokens of an example.
        what: "training", "validation" or "test", for messages; "" for examples of no split.
        answers: The most tokens of an encoder-decoder's answer; None for as many.
        longer: How many were longer.
        longest: Tokens of the longest of them.
        lost: Lines of those in which no token with loss is left.
    """

    context: int
    what: str = ""
    answers: int | None = None
    longer: int = 0
    longest: int = 0
    lost: list[int] = field(default_factory=list[int])

    def cut(self, row: Tokens, encoder_decoder: bool = False) -> Tokens | None:
        """The example within the context, or None where no token with loss is left."""
        answers = self.answers or self.context
        if len(row.ids) > self.context or len(row.labels) > answers:
            self.longer += 1
            self.longest = max(self.longest, len(row.ids), len(row.labels))
            row = Tokens(row.line, row.ids[: self.context], row.labels[:answers])
        if not encoder_decoder:
            # The first token is predicted from nothing; joined, it must not be predicted from another example.
            row = Tokens(row.line, row.ids, [IGNORED, *row.labels[1:]])
        if all(label == IGNORED for label in row.labels):
            self.lost.append(row.line)
            return None
        return row

    def notes(self, n: int) -> list[str]:
        """Describe what was cut and lost of n examples.

        Raises:
            DataError: Nothing is left.
        """
        examples = f"{self.what} examples".lstrip()
        if len(self.lost) == n:
            raise DataError(
                f"None of the {n:,} {examples} has a token with loss within {self.context:,} tokens; "
                "raise --max-length, or shorten what stands before the answers."
            )
        notes: list[str] = []
        if self.longer:
            notes.append(
                f"{self.longer:,} of {n:,} {examples} are longer than {self.context:,} tokens"
                + ("" if self.answers in (None, self.context) else f" (of an answer {self.answers:,})")
                + f" (the longest has {self.longest:,}) and were cut at their end."
            )
        if self.lost:
            where = ", ".join(map(str, self.lost[:5])) + (", ..." if len(self.lost) > 5 else "")
            notes.append(
                f"{len(self.lost):,} of {n:,} {examples} have no token with loss and were left out: line {where}."
            )
        return notes


def prepared(
    rows: Sequence[Tokens], tokenizer: Tokenizer, truncation: Truncation, encoder_decoder: bool, notes: Sequence[str]
) -> Prepared:
    """Cut the examples, and put them together with everything that is to be said about them."""
    cut = [truncation.cut(row, encoder_decoder) for row in rows]
    pad_id, note = pad_token_of(tokenizer)
    said = [*notes, *([note] if note else []), *truncation.notes(len(rows))]
    return Prepared(tuple(row for row in cut if row is not None), pad_id, encoder_decoder, tuple(said))
