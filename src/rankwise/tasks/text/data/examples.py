"""The kinds of examples."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Label = str | float | tuple[str, ...]
"""One label, a number to predict, or several labels."""


ChatMessage = Mapping[str, Any]
"""One turn of a conversation: "role", "content", and whatever else the chat template may read (tool calls, a name,
reasoning)."""


@dataclass(frozen=True)
class Chat:
    """A conversation; every message of the role "assistant" is an answer.

    Args:
        line: Where it stands.
        messages: Its turns.
        tools: Descriptions of the tools that the assistant may call.
        context: Places of the answers that are context only and are not learnt.
    """

    line: int
    messages: tuple[ChatMessage, ...]
    tools: tuple[Any, ...] = ()
    context: frozenset[int] = frozenset()

    @property
    def source(self) -> str:
        """The source: everything before the last answer."""
        turns = [_in_words(message) for message in self.messages[:-1]]
        return "\n".join([*turns, json.dumps(self.tools)] if self.tools else turns)

    @property
    def answer(self) -> str:
        """The answer to learn."""
        last = self.messages[-1]
        return _in_words(last) if has_more(self) else last["content"]


def has_more(chat: Chat) -> bool:
    """Whether the last answer of a conversation holds more than its text, such as tool calls."""
    return not chat.messages[-1].keys() <= {"role", "content"}


def _in_words(message: ChatMessage) -> str:
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    said = f"{message['role']}: {message['content']}"
    return f"{said} {json.dumps(more, ensure_ascii=False, default=str)}" if more else said


@dataclass(frozen=True)
class PromptPair:
    """A prompt and the completion that is to follow it.

    Args:
        line: Where it stands.
        source: The prompt.
        answer: The completion.
        chat: Whether the two are by their nature a user's turn and an assistant's (an instruction and its output).
    """

    line: int
    source: str
    answer: str
    chat: bool = False


@dataclass(frozen=True)
class PlainText:
    """A text to continue; all of it is to be learnt."""

    line: int
    answer: str

    @property
    def source(self) -> str:
        """The text itself: a plain text has no prompt."""
        return self.answer


SftExample = Chat | PromptPair | PlainText


@dataclass(frozen=True)
class Labelled:
    """A text, or two, with its label."""

    line: int
    text: str
    label: Label
    text_pair: str | None = None

    @property
    def source(self) -> tuple[str, str | None]:
        """The text to classify."""
        return self.text, self.text_pair

    @property
    def answer(self) -> Label:
        """The label to learn."""
        return self.label


Example = SftExample | Labelled


def classes_of(example: Example) -> tuple[str, ...]:
    """The labels of an example that are names: one of them, several, or none."""
    label = example.label if isinstance(example, Labelled) else ()
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()
