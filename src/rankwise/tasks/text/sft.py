"""Examples to imitate as tokens: for causal models and for encoder-decoders, loss on the answers or on everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, DataError, suggest
from rankwise.tasks.text.chat import has_template, render, require_template, set_chat_template, tokenize_chat
from rankwise.tasks.text.examples import Chat, Message, Pair, Plain, SftExample
from rankwise.tasks.text.tokens import (
    IGNORED,
    Prepared,
    Tokenizer,
    Tokens,
    Truncation,
    check_known,
    find_context,
    prepared,
    text_config,
)

LOSS_ON = ("answer", "all")


@dataclass(frozen=True, kw_only=True)
class SftOptions:
    """How examples become tokens.

    Args:
        loss_on: "answer" (completions, outputs, what an assistant says) or "all".
        max_length: The most tokens of an example; None takes the model's context.
        chat: Whether prompts and completions are written as a conversation by the chat template. None does so for
            instructions and outputs where there is a template, and not for prompts and completions.
        chat_template: A template for a tokenizer without one, or in place of its own: a file, or Jinja text.
        separator: What stands between prompt and completion where they are not written as a conversation.
    """

    loss_on: str = "answer"
    max_length: int | None = None
    chat: bool | None = None
    chat_template: str | Path | None = None
    separator: str = ""

    def __post_init__(self) -> None:
        if self.loss_on not in LOSS_ON:
            near = suggest(self.loss_on, LOSS_ON)
            raise ConfigError(f'--loss-on is "{self.loss_on}"; it is "answer" or "all".{near}')


def tokenize_sft(
    examples: Sequence[SftExample],
    tokenizer: Tokenizer,
    config: Any,
    options: SftOptions | None = None,
    what: str = "",
) -> Prepared:
    """Make tokens of examples to imitate.

    Args:
        examples: From `read_examples`.
        tokenizer: The model's.
        config: The model's configuration: its context, and whether it is an encoder-decoder.
        options: How; the defaults of `SftOptions` if None.
        what: "training", "validation" or "test", for messages; "" for examples of no split.

    Returns:
        The examples as tokens. Those in which no token with loss is left within the context are left out, and said.

    Raises:
        ConfigError: There is no chat template where one is needed, or a length is too large.
        DataError: A conversation can't be written by the template, or nothing is left.
    """
    options = options or SftOptions()
    if options.chat_template is not None:
        set_chat_template(tokenizer, options.chat_template)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    config = text_config(config)
    context = find_context(config, tokenizer, options.max_length)
    one = _one_for_encoder_decoder if encoder_decoder else _one_for_causal
    rows = [one(example, tokenizer, options) for example in examples]
    for row in rows:
        check_known(row.line, row.ids, tokenizer, config)
        check_known(row.line, row.labels, tokenizer, config)
    notes = [] if encoder_decoder else _notes(examples, rows, tokenizer, options)
    return prepared(rows, tokenizer, Truncation(context, what), encoder_decoder, notes)


def prompt_text(example: SftExample, tokenizer: Tokenizer, options: SftOptions) -> tuple[str, bool]:
    """What the model is given before the last answer, for generating, and whether special tokens are to be added."""
    if messages := as_chat(example, tokenizer, options):
        return render(tokenizer, messages[:-1], example.line, answer_next=True), False
    if isinstance(example, Plain):
        raise DataError(f"Line {example.line} is a plain text; it has no prompt to answer.")
    return example.source + gap(example, options), True


def prompt_ids(example: SftExample, tokenizer: Tokenizer, options: SftOptions, *, encoder_decoder: bool) -> list[int]:
    """The tokens of `prompt_text`, as they stand before an answer."""
    text, special = prompt_text(example, tokenizer, options)
    ids: list[int] = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    return _without(ends_of(tokenizer), ids) if special and not encoder_decoder else ids


def ends_of(tokenizer: Tokenizer) -> list[int]:
    """The token that ends a text, where the tokenizer has one."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def as_chat(example: SftExample, tokenizer: Tokenizer, options: SftOptions) -> Sequence[Message] | None:
    """The example as a conversation, where it is to be written as one."""
    if isinstance(example, Chat):
        require_template(tokenizer)
        return example.messages
    if isinstance(example, Plain):
        return None
    wanted = (example.chat and has_template(tokenizer)) if options.chat is None else options.chat
    if not wanted:
        return None
    require_template(tokenizer)
    return ({"role": "user", "content": example.source}, {"role": "assistant", "content": example.answer})


def _one_for_causal(example: SftExample, tokenizer: Tokenizer, options: SftOptions) -> Tokens:
    loss_on_all = options.loss_on == "all"
    if messages := as_chat(example, tokenizer, options):
        return tokenize_chat(tokenizer, messages, example.line, loss_on_all=loss_on_all)
    eos = ends_of(tokenizer)
    if isinstance(example, Plain):
        ids = _without(eos, tokenizer(example.answer)["input_ids"]) + eos
        return Tokens(example.line, ids, list(ids))
    # The prompt is tokenised by itself, as it will be when the model generates.
    given = prompt_ids(example, tokenizer, options, encoder_decoder=False)
    answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"] + eos
    return Tokens(example.line, given + answer, (given if loss_on_all else [IGNORED] * len(given)) + answer)


def gap(example: SftExample, options: SftOptions) -> str:
    """What stands between prompt and answer where they are not written as a conversation."""
    # An instruction ends with no sign that its output begins.
    return options.separator or ("\n\n" if isinstance(example, Pair) and example.chat else "")


def _without(eos: list[int], ids: list[int]) -> list[int]:
    """Some tokenizers end every text with the token that ends an answer."""
    return ids[:-1] if eos and ids[-1:] == eos else list(ids)


def _one_for_encoder_decoder(example: SftExample, tokenizer: Tokenizer, options: SftOptions) -> Tokens:
    if isinstance(example, Plain):
        raise DataError(
            f"Line {example.line} is a plain text; an encoder-decoder needs what it reads and what it answers "
            "(prompt and completion, instruction and output, or messages)."
        )
    ids = prompt_ids(example, tokenizer, options, encoder_decoder=True)
    return Tokens(example.line, ids, list(tokenizer(text_target=example.answer)["input_ids"]))


def _notes(
    examples: Sequence[SftExample], rows: Sequence[Tokens], tokenizer: Tokenizer, options: SftOptions
) -> list[str]:
    notes: list[str] = []
    bare = [e for e in examples if isinstance(e, Pair) and not as_chat(e, tokenizer, options)]
    touching = [e for e in bare if not ((e.source + gap(e, options))[-1:].isspace() or e.answer[:1].isspace())]
    if touching:
        notes.append(
            f"{_some(len(touching), len(bare))} completions follow the prompt without a space; "
            'a separator such as --separator "\\n" shows the model where they begin.'
        )
    ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    if endless := sum(row.labels[-1:] != [IGNORED] and row.ids[-1] not in ends for row in rows):
        notes.append(
            f"{_some(endless, len(rows))} examples do not end with a special token: the model does not learn to stop."
        )
    return notes


def _some(n: int, of: int) -> str:
    """In words: training, validation and test data then say the same but once."""
    return "All" if n == of else "Some"
