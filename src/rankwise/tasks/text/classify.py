"""Labelled texts as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rankwise.errors import DataError
from rankwise.tasks.text.batches import fill_up
from rankwise.tasks.text.examples import Labelled
from rankwise.tasks.text.labels import Labels
from rankwise.tasks.text.tokens import Tokenizer, check_known, find_context, pad_token_of, text_config


@dataclass(frozen=True)
class ClassifyData:
    """A split of texts.

    Args:
        data: input_ids, attention_mask, labels where they are known (token_type_ids where the model has them); `trim`
            cuts batches.
        lengths: Tokens of each text, for `bucketed_order`.
        notes: What the user should be told.
    """

    data: dict[str, Tensor]
    lengths: list[int]
    notes: tuple[str, ...]


def tokenize_classify(
    examples: Sequence[Labelled],
    labels: Labels,
    tokenizer: Tokenizer,
    config: Any,
    what: str,
    max_length: int | None = None,
) -> ClassifyData:
    """Make tensors of labelled texts. A text that is too long loses its end, of two the longer one does, which is said.

    Args:
        examples: From `read_examples`.
        labels: From `find_labels` on the training examples.
        tokenizer: The model's.
        config: The model's configuration.
        what: "training", "validation" or "test", for messages.
        max_length: The most tokens of a text; None takes the model's context.

    Raises:
        ConfigError: `max_length` is larger than the context.
        DataError: A label is unknown, a token is not in the model's vocabulary, or a text holds the token by which an
            encoder-decoder finds its end.
    """
    encoded_labels = labels.encode(examples, what)
    texts = tokenize_texts(examples, tokenizer, config, what, max_length)
    return ClassifyData({**texts.data, "labels": encoded_labels}, texts.lengths, texts.notes)


def tokenize_texts(
    examples: Sequence[Labelled], tokenizer: Tokenizer, config: Any, what: str, max_length: int | None = None
) -> ClassifyData:
    """Make tensors of texts alone, whatever their labels; as `tokenize_classify`.

    Raises:
        ConfigError: `max_length` is larger than the context.
        DataError: A token is not in the model's vocabulary, or a text holds the token by which an encoder-decoder finds
            its end.
    """
    of_texts = text_config(config)
    context = find_context(of_texts, tokenizer, max_length)
    pad_id, note = pad_token_of(tokenizer)
    texts = [e.text for e in examples]
    pairs = [e.text_pair or "" for e in examples] if any(e.text_pair for e in examples) else None
    # `verbose` warns of every long text; they are counted here.
    encoded = tokenizer(texts, pairs, truncation=False, verbose=False)
    whole = list(map(len, encoded["input_ids"]))
    if longer := sum(n > context for n in whole):
        encoded = tokenizer(texts, pairs, truncation=True, max_length=context)
    notes = [note] if note else []
    if longer:
        notes.append(
            f"{longer:,} of {len(examples):,} {what} texts are longer than {context:,} tokens (the longest has "
            f"{max(whole):,}) and were cut."
        )
    rows = encoded["input_ids"]
    for example, row in zip(examples, rows, strict=True):
        check_known(example.line, row, tokenizer, of_texts)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    if encoder_decoder and isinstance(config.eos_token_id, int):
        rows = _ended(examples, rows, tokenizer, config.eos_token_id, context)
    data = {"input_ids": fill_up(rows, pad_id), "attention_mask": fill_up([[1] * len(row) for row in rows], 0)}
    if "token_type_ids" in encoded and not encoder_decoder:
        data["token_type_ids"] = fill_up(encoded["token_type_ids"], 0)
    return ClassifyData(data, list(map(len, rows)), tuple(notes))


def _ended(
    examples: Sequence[Labelled], rows: Sequence[list[int]], tokenizer: Tokenizer, eos: int, context: int
) -> list[list[int]]:
    """Texts that end with the token whose outputs a classifier over an encoder-decoder reads."""
    ended = [row if eos in row else [*row[: context - 1], eos] for row in rows]
    # transformers takes the outputs at all of them together, so every text must have as many.
    counts = [row.count(eos) for row in ended]
    if wrong := next((e.line for e, n in zip(examples, counts, strict=True) if n > min(counts)), None):
        raise DataError(
            f'Line {wrong} holds "{tokenizer.convert_ids_to_tokens(eos)}", by which the model finds the end of a text; '
            "leave it out of the text."
        )
    return ended
