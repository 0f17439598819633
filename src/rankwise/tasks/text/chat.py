"""Conversations as a tokenizer's chat template writes them, and where in the text the answers stand."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.examples import Message
from rankwise.tasks.text.tokens import IGNORED, Tokenizer, Tokens


def read_template(given: str | Path) -> str:
    """The text of a chat template that is given as Jinja text, or as a file that holds it.

    Raises:
        ConfigError: The file can't be read.
    """
    text = str(given)
    if isinstance(given, Path) or "{" not in text:
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"The chat template {given} can't be read ({why}).") from error
    return text


def set_chat_template(tokenizer: Tokenizer, given: str | Path) -> None:
    """Give a tokenizer a chat template: Jinja text, or a file that holds it.

    Raises:
        ConfigError: The file can't be read.
    """
    tokenizer.chat_template = read_template(given)


@contextmanager
def chat_template(tokenizer: Tokenizer, given: str | Path | None) -> Generator[None]:
    """Give a tokenizer a chat template for the length of a `with` block; None leaves it its own.

    Raises:
        ConfigError: The file can't be read.
    """
    own = tokenizer.chat_template
    if given is not None:
        set_chat_template(tokenizer, given)
    try:
        yield
    finally:
        tokenizer.chat_template = own


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer can write conversations."""
    return bool(tokenizer.chat_template)


def require_template(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that can't write conversations.

    Raises:
        ConfigError: It has no chat template.
    """
    if not has_template(tokenizer):
        raise ConfigError(
            f'The tokenizer of "{tokenizer.name_or_path}" has no chat template, and conversations need one; '
            "give it with --chat-template FILE, or use the columns prompt and completion."
        )


def render(tokenizer: Tokenizer, messages: Sequence[Message], line: int, *, answer_next: bool = False) -> str:
    """The text of a conversation.

    Args:
        tokenizer: Has the template.
        messages: The conversation.
        line: For messages.
        answer_next: Whether the text ends where an answer is to begin.

    Raises:
        ConfigError: The template is no Jinja.
        DataError: It refuses this conversation, or fails on it.
    """
    return _applied(tokenizer, messages, line, tokenize=False, add_generation_prompt=answer_next)


_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a template's expressions may raise."""


def _applied(tokenizer: Tokenizer, messages: Sequence[Message], line: int, **how: Any) -> Any:
    """`apply_chat_template`, with the template's mistakes in one line each."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return tokenizer.apply_chat_template(list(messages), **how)
    except TemplateSyntaxError as error:
        raise ConfigError(f"The chat template is no Jinja: {error.message} (line {error.lineno} of it).") from error
    except TemplateError as error:
        raise DataError(f"Line {line}: the chat template refuses the conversation: {error}") from error
    except _FAILURES as error:
        raise DataError(
            f"Line {line}: the chat template fails on the conversation: {' '.join(str(error).split())} "
            f"({type(error).__name__}). Mend the template, or the conversation."
        ) from error


def tokenize_chat(tokenizer: Tokenizer, messages: Sequence[Message], line: int, *, loss_on_all: bool) -> Tokens:
    """A conversation as tokens, with loss on every answer (with the token that ends it), or on everything.

    The text is tokenised whole; where the answers stand in it is marked by the template itself (`{% generation %}`), or
    found by writing the conversation as far as each answer.

    Raises:
        ConfigError: The tokenizer is too simple to find the answers.
        DataError: The template refuses the conversation, or does not write earlier messages alike as it goes on.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "This tokenizer can't say where in the text its tokens stand, so answers can't be found; "
            "use a fast tokenizer (tokenizer.json)."
        )
    if not loss_on_all and "{% generation" in tokenizer.chat_template.replace("{%-", "{%"):
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        found = _applied(tokenizer, messages, line, **how)
        ids, learnt = list(found["input_ids"]), [bool(m) for m in found["assistant_masks"]]
    else:
        text = render(tokenizer, messages, line)
        spans = [(0, len(text))] if loss_on_all else answer_spans(tokenizer, messages, text, line)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        learnt = [any(a < stop and b > start for start, stop in spans) for a, b in encoded["offset_mapping"]]
    labels = [token if yes else IGNORED for token, yes in zip(ids, learnt, strict=True)]
    return Tokens(line, ids, labels)


def answer_end(tokenizer: Tokenizer) -> int | None:
    """The special token that ends an answer as the chat template writes it; None where none does, or none is found."""
    try:
        asked: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        labels = tokenize_chat(tokenizer, asked, 1, loss_on_all=False).labels
    except (ConfigError, DataError):  # a template that refuses so short a conversation
        return None
    last = next((label for label in reversed(labels) if label != IGNORED), None)
    return last if last in tokenizer.all_special_ids else None


def answer_spans(tokenizer: Tokenizer, messages: Sequence[Message], text: str, line: int) -> list[tuple[int, int]]:
    """Where the answers stand in the text: (start, stop) of each, with what ends it.

    Raises:
        DataError: The template writes a conversation's beginning differently once it goes on.
    """
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:i], line, answer_next=True) if i else ""
        after = text if i == len(messages) - 1 else render(tokenizer, messages[: i + 1], line)
        if not (text.startswith(before) and text.startswith(after)):
            raise DataError(
                f"Line {line}: the chat template writes the messages before answer {len(spans) + 1} differently once "
                "the conversation goes on, so answers can't be told from the rest; give --chat-template with "
                "{% generation %} around answers, or --loss-on all."
            )
        start = len(before) if i else max(text.find(message["content"]), 0)
        spans.append((start, _end_of_answer(tokenizer, text, start, len(after))))
    return spans


def _end_of_answer(tokenizer: Tokenizer, text: str, start: int, stop: int) -> int:
    """Leave out white space after the token that ends the answer: nothing is generated after that token."""
    answer = text[start:stop].rstrip()
    ends = any(token and answer.endswith(token) for token in tokenizer.all_special_tokens)
    return start + len(answer) if ends else stop
