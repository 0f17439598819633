"""How prompts were written in training, kept beside an adapter, so that it is asked as it was taught."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rankwise.errors import DataError
from rankwise.writing import replacing

FILE = "prompting.json"


@dataclass(frozen=True)
class Prompting:
    """How a prompt is written.

    Args:
        chat: As a conversation, by the chat template.
        separator: What stands between prompt and answer where it is not.
        chat_template: A template in place of the tokenizer's own, as text.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Prompting(chat=False, separator=" ->").save(Path(folder))
        ...     read_prompting(Path(folder))
        Prompting(chat=False, separator=' ->', chat_template=None)
    """

    chat: bool = False
    separator: str = ""
    chat_template: str | None = None

    def save(self, folder: Path) -> Path:
        """Write `prompting.json` into a folder.

        Raises:
            OutputError: The folder can't be written.
        """
        with replacing(folder / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder / FILE


def read_prompting(folder: Path) -> Prompting | None:
    """Read `prompting.json` from a folder; None where there is none.

    Raises:
        DataError: It is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Prompting(bool(content["chat"]), str(content["separator"]), content["chat_template"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path} is damaged; it holds {{"chat": ..., "separator": ..., "chat_template": ...}}.'
        ) from error
