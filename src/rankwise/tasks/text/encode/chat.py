"""Conversations as tokens, with loss on the answers: where in the text they stand, and what the template leaves out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.data.examples import Chat, ChatMessage
from rankwise.tasks.text.encode.pieces import encode_pieces
from rankwise.tasks.text.encode.templates import Template
from rankwise.tasks.text.encode.tokens import IGNORED, Tokenizer, Tokens
from rankwise.tasks.text.read.bad_lines import BadLineError

Span = tuple[int, int]


def tokenize_chat(template: Template, chat: Chat, *, loss_on_all: bool) -> Tokens:
    """A conversation as tokens, with loss on every answer (with the token that ends it), or on everything.

    Where the answers are in the text is marked by the template itself (`{% generation %}`), or found by writing the
    conversation as far as each answer. Answers that are context only carry no loss either way.

    Raises:
        ConfigError: The tokenizer is too simple to find the answers.
        BadLineError: The template refuses the conversation, writes earlier messages differently later, or
            writes nothing of an answer.
    """
    tokenizer = template.tokenizer
    if not tokenizer.is_fast:
        raise ConfigError(
            "This tokenizer can't say where in the text its tokens stand, so answers can't be found; "
            "use a fast tokenizer (tokenizer.json)."
        )
    try:
        text, answers = find_answers(template, chat)
    except BadLineError:
        if not loss_on_all or chat.context:
            raise
        text, answers = template.write(chat), []
    places = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    context = [span for i, span in zip(places, answers, strict=False) if i in chat.context]
    learnt = [span for span in answers if span not in context]
    piece = encode_pieces(tokenizer, text, [start for start, _ in answers])
    labels = [
        token if (not _within(at, context) if loss_on_all else _within(at, learnt)) else IGNORED
        for token, at in zip(piece.ids, piece.offsets, strict=True)
    ]
    return Tokens(chat.line, piece.ids, labels)


def _within(token: Span, spans: Sequence[Span]) -> bool:
    return any(token[0] < stop and token[1] > start for start, stop in spans)


def find_answers(template: Template, chat: Chat) -> tuple[str, list[Span]]:
    """The text of a conversation, and where in it the answers stand: (start, stop) of each, with what ends it.

    Raises:
        ConfigError: The template is no Jinja.
        BadLineError: They can't be distinguished from the rest, or one that is to be learnt is empty.
    """
    places = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if template.marks_answers(chat):
        text, spans = template.write_marked(chat)
        if len(spans) != len(places):
            if chat.context:
                raise BadLineError(
                    chat.line,
                    f": the chat template marks {len(spans)} answers of {len(places)}, so those that are not to be "
                    "learnt can't be distinguished from the others.",
                )
            return text, spans
    else:
        text = template.write(chat)
        spans = [_span(template, chat, text, i, k) for k, i in enumerate(places, start=1)]
    for k, (i, (start, stop)) in enumerate(zip(places, spans, strict=True), start=1):
        if i not in chat.context and not _without_special(template.tokenizer, text[start:stop]):
            fields = [f'"{key}"' for key in chat.messages[i] if key not in ("role", "content")]
            raise BadLineError(
                chat.line,
                f": the chat template writes nothing of answer {k} (its {', '.join(fields)})."
                if fields
                else f": answer {k} is empty.",
            )
    return text, spans


def _span(template: Template, chat: Chat, text: str, i: int, k: int) -> Span:
    """The span of answer k, the message i."""
    messages = chat.messages
    before = template.write(chat, messages[:i], answer_next=True) if i else ""
    after = text if i == len(messages) - 1 else template.write(chat, messages[: i + 1])
    if not (text.startswith(before) and text.startswith(after)):
        raise BadLineError(
            chat.line,
            f": the chat template writes the messages before answer {k} differently later in the conversation, so "
            "answers can't be located; give --chat-template with {% generation %} around answers, or "
            "--loss-on all.",
        )
    start = len(before) if i else _first_start(template, chat, text)
    return start, _end_of_answer(template.tokenizer, text, start, len(after))


_OTHERS = ("A", "1", "?")
"""Answers in place of the first: at least two of them begin otherwise."""


def _first_start(template: Template, chat: Chat, text: str) -> int:
    """Where the text begins to depend on a first message that is an answer: no prompt before it can be written."""
    others: list[list[ChatMessage]] = [
        [{"role": "assistant", "content": other}, *chat.messages[1:]] for other in _OTHERS
    ]
    return min(_alike(text, template.write(chat, other)) for other in others)


def _alike(a: str, b: str) -> int:
    """The length of two texts' common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _end_of_answer(tokenizer: Tokenizer, text: str, start: int, stop: int) -> int:
    """Leave out white space after the token that ends the answer: nothing is generated after that token."""
    answer = text[start:stop].rstrip()
    ends = any(token and answer.endswith(token) for token in tokenizer.all_special_tokens)
    return start + len(answer) if ends else stop


def _without_special(tokenizer: Tokenizer, text: str) -> str:
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()


def answer_end(template: Template) -> int | None:
    """The special token that ends an answer as the chat template writes it; None where none does, or none is found."""
    asked = Chat(1, ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    try:
        labels = tokenize_chat(template, asked, loss_on_all=False).labels
    except (ConfigError, DataError):  # a template that refuses so short a conversation
        return None
    last = next((label for label in reversed(labels) if label != IGNORED), None)
    return last if last in template.tokenizer.all_special_ids else None


def answer_text(template: Template, chat: Chat) -> str:
    """The last answer as the chat template writes it, without special tokens."""
    text, answers = find_answers(template, chat)
    start, stop = answers[-1]
    return _without_special(template.tokenizer, text[start:stop])


@dataclass(frozen=True)
class Use:
    """Describe what a chat template writes of a conversation beyond roles and contents.

    Args:
        written: What it writes.
        left_out: What it does not write.
        asked: How it asks for an answer otherwise than it writes one, as a sentence without its end; None where it does
            not.
    """

    written: tuple[str, ...]
    left_out: tuple[str, ...]
    asked: str | None = None


def use_of(template: Template, chat: Chat) -> Use:
    """Find the parts of a conversation that the chat template writes, by removing each.

    Raises:
        ConfigError: The template is no Jinja.
        BadLineError: It refuses this conversation.
    """
    text = template.write(chat)
    cut = dict.fromkeys(m["role"] for m in chat.messages if m["content"].strip() not in text)
    parts: dict[str, tuple[Chat, Sequence[ChatMessage]]] = {}
    for field in dict.fromkeys(key for m in chat.messages for key in m if key not in ("role", "content")):
        without = [{key: value for key, value in m.items() if key != field} for m in chat.messages]
        parts[f'"{field}" of messages'] = chat, without
    if chat.tools:
        parts['the column "tools"'] = Chat(chat.line, chat.messages), chat.messages
    unread = [what for what, (without, messages) in parts.items() if _written_alike(template, without, messages, text)]
    return Use(
        written=tuple(what for what in parts if what not in unread),
        left_out=(*(f'a part of what messages of the role "{role}" say' for role in cut), *unread),
        asked=_asked_otherwise(template, chat, text),
    )


def _asked_otherwise(template: Template, chat: Chat, text: str) -> str | None:
    """Where what stands before the last answer is not what the template asks for an answer with."""
    i = len(chat.messages) - 1
    if i == 0 or chat.messages[i]["role"] != "assistant":
        return None
    asking = template.write(chat, chat.messages[:i], answer_next=True)
    if not text.startswith(asking):
        end = asking[_alike(asking, text) :]
        return f"The chat template asks for an answer with {_quoted(end)}, which it does not write before answers"
    spans = template.write_marked(chat)[1] if template.marks_answers(chat) else []
    between = text[len(asking) : spans[-1][0]] if spans else ""
    if not between.strip():
        return None
    return (
        f"The chat template writes {_quoted(between)} before an answer without marking it as one, and does not ask for "
        "an answer with it: the model does not learn to write it"
    )


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else f"{text[:37]}...", ensure_ascii=False)


def _written_alike(template: Template, chat: Chat, messages: Sequence[ChatMessage], text: str) -> bool:
    try:
        return template.write(chat, messages) == text
    except BadLineError:  # it needs what has been taken out
        return False
