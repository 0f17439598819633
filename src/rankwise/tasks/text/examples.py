"""What an example is, once its columns have been understood."""

from dataclasses import dataclass
from typing import TypedDict

Label = str | float | tuple[str, ...]
"""One label, a number to predict, or several labels."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation; every message of the role "assistant" is an answer."""

    line: int
    messages: tuple[Message, ...]

    @property
    def source(self) -> str:
        """What is given: everything before the last answer."""
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages[:-1])

    @property
    def answer(self) -> str:
        """What is to be learnt."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Pair:
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
class Plain:
    """A text to continue; all of it is to be learnt."""

    line: int
    answer: str

    @property
    def source(self) -> str:
        """Nothing is given, so a plain text is known by itself."""
        return self.answer


SftExample = Chat | Pair | Plain


@dataclass(frozen=True)
class Labelled:
    """A text, or two, with its label."""

    line: int
    text: str
    label: Label
    text_pair: str | None = None

    @property
    def source(self) -> tuple[str, str | None]:
        """What is given."""
        return self.text, self.text_pair

    @property
    def answer(self) -> Label:
        """What is to be learnt."""
        return self.label


Example = SftExample | Labelled


def classes_of(example: Example) -> tuple[str, ...]:
    """The labels of an example that are names: one of them, several, or none."""
    label = example.label if isinstance(example, Labelled) else ()
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()
