"""Chat templates: found, given, dated, and applied to a conversation."""

import datetime
import json
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.tasks.text.data.examples import Chat, ChatMessage
from rankwise.tasks.text.encode.tokens import Tokenizer
from rankwise.tasks.text.read.bad_lines import BadLineError


def read_template(given: str | Path) -> str:
    """The text of a chat template that is given as Jinja text, or as a file that holds it.

    Raises:
        ConfigError: The file can't be read.
    """
    text = str(given)
    if isinstance(given, Path) or "{" not in text:
        try:
            text = Path(given).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"The chat template {given} can't be read ({why}).") from error
    return text


def set_chat_template(tokenizer: Tokenizer, given: str | Path) -> None:
    """Set a tokenizer's chat template: Jinja text, or a file.

    Raises:
        ConfigError: The file can't be read.
    """
    tokenizer.chat_template = read_template(given)


@contextmanager
def chat_template(tokenizer: Tokenizer, given: str | Path | None) -> Generator[None]:
    """Set a tokenizer's chat template inside a `with` block; None keeps its own.

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
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        raise ConfigError(
            f'The tokenizer of "{tokenizer.name_or_path}" has the chat templates {", ".join(sorted(named))}, and none '
            'called "default"; give one with --chat-template FILE.'
        )


def template_text(tokenizer: Tokenizer, tools: Sequence[Any] = ()) -> str:
    """The template that writes a conversation: of several named ones "tool_use" where there are tools, else "default".

    Raises:
        ConfigError: There is none.
    """
    require_template(tokenizer)
    named: Any = tokenizer.chat_template
    if isinstance(named, dict):
        return named["tool_use" if tools and "tool_use" in named else "default"]
    return named


def writes_date(tokenizer: Tokenizer) -> bool:
    """Whether a template of the tokenizer writes today's date."""
    named: Any = tokenizer.chat_template or ""
    return any(_NOW in text for text in (named.values() if isinstance(named, dict) else [named]))


def read_date(text: str) -> datetime.date:
    """The date that a user gives.

    Raises:
        ConfigError: It is none.

    Examples:
        >>> read_date("2026-11-29")
        datetime.date(2026, 11, 29)
    """
    try:
        return datetime.date.fromisoformat(text)
    except (TypeError, ValueError):
        raise ConfigError(f'--date is "{text}"; it is a date such as 2026-11-29.') from None


_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyY"
"""Letters after a percent sign, with or without a dash."""


def dated(template: str, date: str | None) -> str:
    """The template with its own macro in place of the function that gives today's date, however it calls that.

    Examples:
        >>> from jinja2 import Environment
        >>> text = dated("{% set form = '%d %b %Y' %}{{ strftime_now(form) }}", "2026-07-04")
        >>> Environment(trim_blocks=True).from_string(text).render()
        '04 Jul 2026'
    """
    if date is None or _NOW not in template:
        return template
    day = datetime.datetime.combine(read_date(date), datetime.time())
    # Two percent signs stand for one, and don't begin a directive.
    steps = [("%%", "\0"), *((f"%{sign}{d}", day.strftime(f"%{sign}{d}")) for sign in ("-", "") for d in _DIRECTIVES)]
    filters = "".join(f"|replace({old!r},{new!r})" for old, new in [*steps, ("\0", "%")])
    # In its own line, which `trim_blocks` takes away with its end.
    return f"{{% macro {_NOW}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"


_NOW = "strftime_now"
"""Templates' names of the function that returns today's date."""

_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""Exceptions of a template's expressions."""


def _with_arguments_as_text(message: ChatMessage) -> ChatMessage:
    """The message with the arguments of its tool calls as JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        if isinstance(call.get("function"), Mapping) and isinstance(call["function"].get("arguments"), Mapping)
        else call
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


class Template:
    """A tokenizer's chat template, on one date.

    Args:
        tokenizer: Has the template.
        date: The date that the template writes, such as "2026-11-29"; None for today's.
    """

    def __init__(self, tokenizer: Tokenizer, date: str | None = None) -> None:
        self.tokenizer, self._date = tokenizer, date
        self._dated: dict[str, str] = {}
        self._last: tuple[Chat, str] | None = None

    def text(self, tools: Sequence[Any] = ()) -> str:
        """The Jinja text."""
        own = template_text(self.tokenizer, tools)
        if own not in self._dated:
            self._dated[own] = dated(own, self._date)
        return self._dated[own]

    def marks_answers(self, chat: Chat) -> bool:
        """Whether it marks answers itself, with `{% generation %}`."""
        return re.search(r"\{%-?\s*generation\b", self.text(chat.tools)) is not None

    def write(self, chat: Chat, messages: Sequence[ChatMessage] | None = None, *, answer_next: bool = False) -> str:
        """The text of a conversation.

        Args:
            chat: The conversation.
            messages: Other messages in place of its own.
            answer_next: Whether the text ends where an answer is to begin.

        Raises:
            ConfigError: The template is no Jinja.
            BadLineError: It refuses this conversation, or fails on it.
        """
        if messages is not None or answer_next:
            return self._apply(chat, messages, answer_next=answer_next)[0]
        if self._last is None or self._last[0] is not chat:
            self._last = chat, self._apply(chat, None)[0]
        return self._last[1]

    def write_marked(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where in it the template marks answers: (start, stop) of each.

        Raises:
            ConfigError: The template is no Jinja.
            BadLineError: It refuses this conversation, or fails on it.
        """
        return self._apply(chat, None, marks=True)

    def _apply(
        self, chat: Chat, messages: Sequence[ChatMessage] | None, *, answer_next: bool = False, marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [*(chat.messages if messages is None else messages)]
        template, tools = self.text(chat.tools), [*chat.tools] or None

        def apply(turns: list[ChatMessage]) -> tuple[str, list[tuple[int, int]]]:
            if not marks:
                return self.tokenizer.apply_chat_template(
                    turns,
                    tools=tools,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=answer_next,
                ), []
            more: dict[str, Any] = self.tokenizer.special_tokens_map
            written: Any = render_jinja_template(
                [[dict(turn) for turn in turns]],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **more,
            )
            texts, spans = written
            return texts[0], [(start, stop) for start, stop in spans[0]]

        try:
            try:
                return apply(turns)
            except TypeError:
                # Some templates put a call's arguments into the text as they are.
                as_text = [_with_arguments_as_text(turn) for turn in turns]
                if as_text == turns:
                    raise
                return apply(as_text)
        except TemplateSyntaxError as error:
            line = error.lineno - (template != template_text(self.tokenizer, chat.tools))
            raise ConfigError(f"The chat template is no Jinja: {error.message} (line {line} of it).") from error
        except TemplateError as error:
            raise BadLineError(chat.line, f": the chat template refuses the conversation: {error}") from error
        except _FAILURES as error:
            raise BadLineError(
                chat.line,
                f": the chat template fails on the conversation: {' '.join(str(error).split())} "
                f"({type(error).__name__}). Mend the template, or the conversation.",
            ) from error
