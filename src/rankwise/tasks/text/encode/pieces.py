"""Texts as tokens, cut where generation would begin: the tokens before such a place are those of the prompt alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.tasks.text.encode.tokens import Tokenizer

_ANCHORS = ("\n", "a", ".")
"""A prefix for tokenising a text that is not a beginning."""

_SPACE = "\u2581"
"""SentencePiece's space, which it adds before a text."""


@dataclass(frozen=True)
class Piece:
    """Tokens and where in the text each stands."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def encode_around(tokenizer: Tokenizer, text: str, *, target: bool = False) -> list[int]:
    """The tokens of a text with the special tokens that the tokenizer puts around it, each of which is there once.

    A text that a chat template wrote beforehand holds them already.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        target: Whether it is what an encoder-decoder is to answer.
    """
    given = {"text_target" if target else "text": text}
    ids: list[int] = list(tokenizer(**given, verbose=False)["input_ids"])
    return ids[once(tokenizer, text, ids)]


def once(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> slice:
    """The part of a text's tokens that has those which the tokenizer puts around it once, where the text has them too.

    Examples:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(bos_token_id=1, cls_token_id=None, eos_token_id=2, sep_token_id=None)
        >>> tokenizer.convert_ids_to_tokens = {1: "<s>", 2: "</s>"}.get
        >>> once(tokenizer, "<s>a", [1, 1, 5, 2])
        slice(1, 4, None)
    """
    start, stop = 0, len(ids)
    for token in {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}:
        written = tokenizer.convert_ids_to_tokens(token)
        if list(ids[:2]) == [token, token] and not text.startswith(written * 2):
            start = 1
    for token in {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}:
        written = tokenizer.convert_ids_to_tokens(token)
        if list(ids[-2:]) == [token, token] and stop - start > 1 and not text.endswith(written * 2):
            stop -= 1
    return slice(start, stop)


def encode_pieces(tokenizer: Tokenizer, text: str, starts: Sequence[int]) -> Piece:
    """The tokens of a text, without special tokens around it, cut where an answer starts.

    Where the tokens of the whole text would not begin with those of the text up to a start (a token lies over it, or
    white space before it is grouped otherwise), the model would never be asked for what follows as it was taught.
    The parts are tokenised one by one then.

    Args:
        tokenizer: A fast tokenizer.
        text: The text.
        starts: Where answers start in it.
    """
    encoded = _encoded(tokenizer, text)
    cuts = sorted({start for start in starts if 0 < start < len(text)})
    if all(_agrees(tokenizer, text, encoded, cut) for cut in cuts):
        return encoded
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        part = text[start:stop]
        piece = encode_continuation(tokenizer, part) if start else _encoded(tokenizer, part)
        ids += piece.ids
        offsets += [(a + start, b + start) for a, b in piece.offsets]
    return Piece(ids, offsets)


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of an answer that continues a prompt."""
    if not tokenizer.is_fast:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return encode_continuation(tokenizer, text).ids


def encode_continuation(tokenizer: Tokenizer, text: str) -> Piece:
    """The tokens of a text that continues another: without SentencePiece's leading space.

    Args:
        tokenizer: A fast tokenizer.
        text: The text.
    """
    alone = _encoded(tokenizer, text)
    if not alone.ids or not tokenizer.convert_ids_to_tokens(alone.ids[0]).startswith(_SPACE):
        return alone
    for anchor in _ANCHORS:
        piece = _encoded(tokenizer, anchor + text)
        before = [i for i, (_, stop) in enumerate(piece.offsets) if stop <= len(anchor)]
        k = len(before)
        if before == list(range(k)) and all(start >= len(anchor) for start, _ in piece.offsets[k:]):
            return Piece(piece.ids[k:], [(a - len(anchor), b - len(anchor)) for a, b in piece.offsets[k:]])
    return alone


def _encoded(tokenizer: Tokenizer, text: str) -> Piece:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return Piece(list(encoded["input_ids"]), [(a, b) for a, b in encoded["offset_mapping"]])


def _agrees(tokenizer: Tokenizer, text: str, encoded: Piece, cut: int) -> bool:
    alone: list[int] = list(tokenizer(text[:cut], add_special_tokens=False, verbose=False)["input_ids"])
    rest = encoded.offsets[len(alone) :]
    return encoded.ids[: len(alone)] == alone and all(start >= cut for start, _ in rest)
