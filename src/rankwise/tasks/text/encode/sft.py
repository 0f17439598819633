"""Examples to imitate as tokens: for causal models and for encoder-decoders, loss on the answers or on everything."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, suggest
from rankwise.tasks.text.data.examples import Chat, PlainText, PromptPair, SftExample, has_more
from rankwise.tasks.text.encode.chat import Use, answer_text, tokenize_chat, use_of
from rankwise.tasks.text.encode.pieces import continuation, encode_around
from rankwise.tasks.text.encode.templates import Template, has_template, read_date, require_template, set_chat_template
from rankwise.tasks.text.encode.tokens import (
    IGNORED,
    Prepared,
    Tokenizer,
    Tokens,
    Truncation,
    check_known,
    find_answer_context,
    find_context,
    prepared,
    reading_config,
    text_config,
)
from rankwise.tasks.text.read.bad_lines import BadLineError, usable

LOSS_ON = ("answer", "all")


@dataclass(frozen=True, kw_only=True)
class SftOptions:
    """Settings for tokenising examples.

    Args:
        loss_on: "answer" (completions, outputs, what an assistant says) or "all".
        max_length: The most tokens of an example; None takes the model's context.
        chat: Whether prompts and completions are written as a conversation by the chat template. None does so for
            instructions and outputs where there is a template, and not for prompts and completions.
        chat_template: A template for a tokenizer without one, or in place of its own: a file, or Jinja text.
        separator: What stands between prompt and completion where they are not written as a conversation.
        date: The date that a chat template writes, such as "2026-11-29"; None for today's.
    """

    loss_on: str = "answer"
    max_length: int | None = None
    chat: bool | None = None
    chat_template: str | Path | None = None
    separator: str = ""
    date: str | None = None

    def __post_init__(self) -> None:
        if self.date is not None:
            read_date(self.date)
        if self.loss_on not in LOSS_ON:
            near = suggest(self.loss_on, LOSS_ON)
            raise ConfigError(f'--loss-on is "{self.loss_on}"; it is "answer" or "all".{near}')


def tokenize_sft(
    examples: Sequence[SftExample],
    tokenizer: Tokenizer,
    config: Any,
    options: SftOptions | None = None,
    what: str = "",
    *,
    skip_bad_lines: bool = False,
) -> Prepared:
    """Make tokens of examples to imitate.

    Args:
        examples: From `read_examples`.
        tokenizer: The model's.
        config: The model's configuration: its context, and whether it is an encoder-decoder.
        options: How; the defaults of `SftOptions` if None.
        what: "training", "validation" or "test", for messages; "" for examples of no split.
        skip_bad_lines: Leave out examples that can't be used, and say so, instead of refusing them.

    Returns:
        The examples as tokens. Those in which no token with loss is left within the context are left out, and said.

    Raises:
        ConfigError: There is no chat template where one is needed, or a length is too large.
        DataError: An example can't be used, or nothing is left.
    """
    options = options or SftOptions()
    if options.chat_template is not None:
        set_chat_template(tokenizer, options.chat_template)
    template = Template(tokenizer, options.date)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    reads, writes = reading_config(config), text_config(config)
    context = find_context(reads, tokenizer, options.max_length)
    answers = find_answer_context(config, context) if encoder_decoder else None

    uses: list[Use] = []

    def one(example: SftExample) -> Tokens:
        chat = as_chat(example, tokenizer, options)
        if encoder_decoder:
            row = _one_for_encoder_decoder(example, chat, template, options)
        else:
            row = _one_for_causal(example, chat, template, options)
        check_known(row.line, row.ids, tokenizer, reads)
        check_known(row.line, row.labels, tokenizer, writes)
        if chat is not None:
            uses.append(use_of(template, chat))
        return row

    made, notes = usable(examples, one, f"{what} examples".lstrip(), skip=skip_bad_lines)
    rows = [row for _, row in made]
    notes += [*_template_notes(uses), *_idle_notes([example for example, _ in made], tokenizer, options)]
    notes += _ends_inside([example for example, _ in made], tokenizer)
    notes += [] if encoder_decoder else _notes([e for e, _ in made], rows, tokenizer, options)
    return prepared(rows, tokenizer, Truncation(context, what, answers), encoder_decoder, notes)


def prompt_text(example: SftExample, tokenizer: Tokenizer, options: SftOptions) -> tuple[str, bool]:
    """The prompt before the last answer, for generating, and whether to add special tokens."""
    if chat := as_chat(example, tokenizer, options):
        return Template(tokenizer, options.date).write(chat, chat.messages[:-1], answer_next=True), False
    if isinstance(example, PlainText):
        raise BadLineError(example.line, " is a plain text; it has no prompt to answer.")
    return example.source + gap(example, options), True


def prompt_ids(example: SftExample, tokenizer: Tokenizer, options: SftOptions, *, encoder_decoder: bool) -> list[int]:
    """The tokens of `prompt_text`, as they stand before an answer."""
    text, special = prompt_text(example, tokenizer, options)
    if not special:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    ids = encode_around(tokenizer, text)
    return ids if encoder_decoder else _without(ends_of(tokenizer), ids)


def ends_of(tokenizer: Tokenizer) -> list[int]:
    """The token that ends a text, where the tokenizer has one."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def as_chat(example: SftExample, tokenizer: Tokenizer, options: SftOptions) -> Chat | None:
    """The example as a conversation, where it is to be written as one."""
    if isinstance(example, Chat):
        require_template(tokenizer)
        return example
    if isinstance(example, PlainText):
        return None
    wanted = (example.chat and has_template(tokenizer)) if options.chat is None else options.chat
    if not wanted:
        return None
    require_template(tokenizer)
    turns = ({"role": "user", "content": example.source}, {"role": "assistant", "content": example.answer})
    return Chat(example.line, turns)


def _one_for_causal(example: SftExample, chat: Chat | None, template: Template, options: SftOptions) -> Tokens:
    tokenizer = template.tokenizer
    loss_on_all = options.loss_on == "all"
    if chat is not None:
        return tokenize_chat(template, chat, loss_on_all=loss_on_all)
    eos = ends_of(tokenizer)
    if isinstance(example, PlainText):
        ids = _without(eos, encode_around(tokenizer, example.answer)) + eos
        return Tokens(example.line, ids, list(ids))
    # The prompt is tokenised by itself, as it will be when the model generates.
    given = prompt_ids(example, tokenizer, options, encoder_decoder=False)
    answer = _without(eos, continuation(tokenizer, example.answer)) + eos
    return Tokens(example.line, given + answer, (given if loss_on_all else [IGNORED] * len(given)) + answer)


def gap(example: SftExample, options: SftOptions) -> str:
    """The separator of prompt and answer where they are not a conversation."""
    # An instruction ends with no sign that its output begins.
    return options.separator or ("\n\n" if isinstance(example, PromptPair) and example.chat else "")


def _without(eos: list[int], ids: list[int]) -> list[int]:
    """Some tokenizers end every text with the token that ends an answer."""
    return ids[:-1] if eos and ids[-1:] == eos else list(ids)


def _one_for_encoder_decoder(example: SftExample, chat: Chat | None, template: Template, options: SftOptions) -> Tokens:
    tokenizer = template.tokenizer
    if isinstance(example, PlainText):
        raise BadLineError(
            example.line,
            " is a plain text; an encoder-decoder needs what it reads and what it answers "
            "(prompt and completion, instruction and output, or messages).",
        )
    ids = prompt_ids(example, tokenizer, options, encoder_decoder=True)
    answer = answer_text(template, chat) if chat is not None and has_more(chat) else example.answer
    return Tokens(example.line, ids, encode_around(tokenizer, answer, target=True))


def _template_notes(uses: Sequence[Use]) -> list[str]:
    """What the chat template writes of conversations beyond roles and contents, and what it leaves out."""
    written = list(dict.fromkeys(what for use in uses for what in use.written))
    left_out = Counter(what for use in uses for what in use.left_out)
    asked = Counter(use.asked for use in uses if use.asked is not None)
    return [
        *(f"{what} ({_some(n, len(uses)).lower()} conversations)." for what, n in asked.items()),
        *([f"The chat template writes {', '.join(written)}."] if written else []),
        *(
            f"The chat template does not write {what} ({'all' if n == len(uses) else 'some'} conversations)."
            for what, n in left_out.items()
        ),
    ]


def _idle_notes(examples: Sequence[SftExample], tokenizer: Tokenizer, options: SftOptions) -> list[str]:
    """Settings that a user gave and that these examples have no use for."""
    chats = sum(as_chat(example, tokenizer, options) is not None for example in examples)
    idle: list[str] = []
    if options.separator and chats == len(examples):
        idle.append("--separator has no effect: all examples are written by the chat template.")
    if options.chat_template is not None and not chats:
        idle.append(
            "--chat-template has no effect: no example is written as a conversation; --chat writes them as one."
        )
    if options.chat is False and any(isinstance(example, Chat) for example in examples):
        idle.append("--no-chat has no effect on messages, which a chat template always writes.")
    if options.chat and all(isinstance(example, PlainText) for example in examples):
        idle.append("--chat has no effect: plain texts are not written as conversations.")
    return idle


def _ends_inside(examples: Sequence[SftExample], tokenizer: Tokenizer) -> list[str]:
    """Answers in whose middle the token stands at which generation stops."""
    end: Any = tokenizer.eos_token
    answers = [_answers(example) for example in examples if not isinstance(example, PlainText)]
    inside = sum(any(end in answer.rstrip().removesuffix(end) for answer in texts) for texts in answers if end)
    if not inside:
        return []
    return [
        f'{_some(inside, len(answers))} answers hold the end token "{end}" inside: generation stops there, so what '
        "follows it is learnt and never given."
    ]


def _answers(example: Chat | PromptPair) -> list[str]:
    if isinstance(example, PromptPair):
        return [example.answer]
    contents: list[Any] = [turn.get("content") for turn in example.messages if turn["role"] == "assistant"]
    return [content for content in contents if isinstance(content, str)]


def _notes(
    examples: Sequence[SftExample], rows: Sequence[Tokens], tokenizer: Tokenizer, options: SftOptions
) -> list[str]:
    notes: list[str] = []
    bare = [e for e in examples if isinstance(e, PromptPair) and not as_chat(e, tokenizer, options)]
    touching = [e for e in bare if not ((e.source + gap(e, options))[-1:].isspace() or e.answer[:1].isspace())]
    if touching:
        notes.append(
            f"{_some(len(touching), len(bare))} completions follow the prompt without a space; "
            'a separator such as --separator "\\n" shows the model where they begin.'
        )
    ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    if endless := sum(_last_learnt(row, tokenizer) not in ends for row in rows):
        notes.append(
            f"{_some(endless, len(rows))} examples do not end with a special token that carries loss: the model does "
            "not learn to stop."
        )
    return notes


def _last_learnt(row: Tokens, tokenizer: Tokenizer) -> int | None:
    """The last token with loss that is not white space; the end where nothing is learnt, which other notes report."""
    learnt = [label for label in row.labels if label != IGNORED]
    return next((token for token in reversed(learnt) if tokenizer.decode([token]).strip()), tokenizer.eos_token_id)


def _some(n: int, of: int) -> str:
    """Sentences, so that equal notes of training, validation and test data appear once."""
    return "All" if n == of else "Some"
