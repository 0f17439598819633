"""Labelled texts as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.batches import fill_up
from rankwise.tasks.text.encode.pieces import once
from rankwise.tasks.text.encode.tokens import Tokenizer, check_known, find_context, pad_token_of, text_config
from rankwise.tasks.text.read.bad_lines import BadLineError, usable


@dataclass(frozen=True)
class ClassifyData:
    """A split of texts.

    Args:
        data: input_ids, attention_mask, labels where they are known (token_type_ids where the model has them); `trim`
            cuts batches.
        lengths: Tokens of each text, for `bucketed_order`.
        notes: What the user should know.
        examples: The texts themselves, without those that were left out.
    """

    data: dict[str, Tensor]
    lengths: list[int]
    notes: tuple[str, ...]
    examples: tuple[Labelled, ...]


def tokenize_classify(
    examples: Sequence[Labelled],
    labels: Labels,
    tokenizer: Tokenizer,
    config: Any,
    what: str,
    max_length: int | None = None,
    *,
    skip_bad_lines: bool = False,
) -> ClassifyData:
    """Make tensors of labelled texts. Long texts are truncated (of a pair, the longer one); a note counts them.

    Args:
        examples: From `read_examples`.
        labels: From `find_labels` on the training examples.
        tokenizer: The model's.
        config: The model's configuration.
        what: "training", "validation" or "test", for messages.
        max_length: The most tokens of a text; None takes the model's context.
        skip_bad_lines: Leave out examples that can't be used, and say so, instead of refusing them.

    Raises:
        ConfigError: `max_length` is larger than the context.
        DataError: A label is unknown, a token is not in the model's vocabulary, or a text holds the token by which an
            encoder-decoder finds its end.
    """
    examples, notes = _usable(examples, labels, tokenizer, config, what, skip_bad_lines)
    texts = tokenize_texts(examples, tokenizer, config, what, max_length)
    data = {**texts.data, "labels": labels.encode(examples, what)}
    return ClassifyData(data, texts.lengths, (*notes, *texts.notes), tuple(examples))


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
    encoded = _encode(tokenizer, examples, truncation=False, verbose=False)
    for example, ids in zip(examples, encoded["input_ids"], strict=True):
        _check_tokens(example, ids, tokenizer, config)
    lengths = list(map(len, encoded["input_ids"]))
    if longer := sum(n > context for n in lengths):
        encoded = _encode(tokenizer, examples, truncation=True, max_length=context)
    notes = [note] if note else []
    if longer:
        notes.append(
            f"{longer:,} of {len(examples):,} {what} texts are longer than {context:,} tokens (the longest has "
            f"{max(lengths):,}) and were cut."
        )
    rows = encoded["input_ids"]
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    if encoder_decoder and isinstance(config.eos_token_id, int):
        rows = _ended(rows, config.eos_token_id, context)
    data = {"input_ids": fill_up(rows, pad_id), "attention_mask": fill_up([[1] * len(row) for row in rows], 0)}
    if "token_type_ids" in encoded and not encoder_decoder:
        data["token_type_ids"] = fill_up(encoded["token_type_ids"], 0)
    return ClassifyData(data, list(map(len, rows)), tuple(notes), tuple(examples))


def _encode(tokenizer: Tokenizer, examples: Sequence[Labelled], **tokenizing: Any) -> dict[str, list[list[int]]]:
    """Token ids of texts and of pairs, each as it is encoded alone. (`verbose` warns of every long text; they are
    counted elsewhere.)"""
    found: dict[str, list[list[int]]] = {}
    for paired in (False, True):
        places = [i for i, e in enumerate(examples) if (e.text_pair is not None) == paired]
        if not places:
            continue
        texts = [examples[i].text for i in places]
        encoded = tokenizer(texts, [examples[i].text_pair for i in places] if paired else None, **tokenizing)
        for key, rows in encoded.items():
            into = found.setdefault(key, [[] for _ in examples])
            for i, text, row, ids in zip(places, texts, rows, encoded["input_ids"], strict=True):
                into[i] = row if paired else row[once(tokenizer, text, ids)]
    return found


def _check_tokens(example: Labelled, ids: Sequence[int], tokenizer: Tokenizer, config: Any) -> None:
    """Refuse a text with tokens that the model can't take."""
    check_known(example.line, ids, tokenizer, text_config(config))
    end = config.eos_token_id if getattr(config, "is_encoder_decoder", False) else None
    # transformers takes the outputs at all of these tokens together, so every text must have just one.
    if isinstance(end, int) and end in ids[:-1]:
        raise BadLineError(
            example.line,
            f' holds "{tokenizer.convert_ids_to_tokens(end)}", by which the model finds the end of a text; '
            "leave it out of the text.",
        )


def _usable(
    examples: Sequence[Labelled], labels: Labels, tokenizer: Tokenizer, config: Any, what: str, skip: bool
) -> tuple[list[Labelled], list[str]]:
    """The examples whose labels and tokens the model knows."""
    if not skip:
        labels.encode(examples, what)  # names all unknown labels at once
        return list(examples), []
    rows = _encode(tokenizer, examples, truncation=False, verbose=False)["input_ids"]
    ids_of = {id(example): ids for example, ids in zip(examples, rows, strict=True)}

    def check(example: Labelled) -> None:
        try:
            labels.encode([example], what)
        except BadLineError:
            raise
        except DataError as error:
            raise BadLineError(example.line, f": {error}") from error
        _check_tokens(example, ids_of[id(example)], tokenizer, config)

    made, notes = usable(examples, check, f"{what} examples", skip=skip)
    return [example for example, _ in made], notes


def _ended(rows: Sequence[list[int]], eos: int, context: int) -> list[list[int]]:
    """Texts that end with the token whose outputs a classifier over an encoder-decoder reads."""
    return [row if eos in row else [*row[: context - 1], eos] for row in rows]
