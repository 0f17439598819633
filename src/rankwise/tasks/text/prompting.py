"""The prompt format of training, stored next to an adapter, so that its use matches its training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankwise.tasks.text.sidecar import read_sidecar, write_sidecar

FILE = "prompting.json"


@dataclass(frozen=True)
class Prompting:
    """The format of prompts.

    Args:
        chat: As a conversation, by the chat template.
        separator: What stands between prompt and answer where it is not.
        chat_template: A template in place of the tokenizer's own, as text.
        date: The date that the template wrote; None where it writes none.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Prompting(chat=False, separator=" ->").save(Path(folder))
        ...     read_prompting(Path(folder))
        Prompting(chat=False, separator=' ->', chat_template=None, date=None)
    """

    chat: bool = False
    separator: str = ""
    chat_template: str | None = None
    date: str | None = None

    def save(self, folder: Path) -> Path:
        """Write `prompting.json` into a folder.

        Raises:
            OutputError: The folder can't be written.
        """
        return write_sidecar(folder / FILE, asdict(self))


def read_prompting(folder: Path) -> Prompting | None:
    """Read `prompting.json` from a folder; None where there is none.

    Raises:
        DataError: It is damaged.
    """
    holds = '{"chat": ..., "separator": ..., "chat_template": ..., "date": ...}'
    return read_sidecar(folder / FILE, _prompting, holds)


def _prompting(content: Any) -> Prompting:
    chat, separator, template, date = (content.get(key) for key in ("chat", "separator", "chat_template", "date"))
    texts = isinstance(separator, str) and isinstance(template, str | None) and isinstance(date, str | None)
    if not (isinstance(chat, bool) and texts):
        raise TypeError("a setting is of another type")
    return Prompting(chat, separator, template, date)
