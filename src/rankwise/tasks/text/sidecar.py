"""Small JSON files next to an adapter: how to use it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rankwise.errors import DataError
from rankwise.writing import read_regular, replacing

Content = TypeVar("Content")


def write_sidecar(path: Path, content: Any) -> Path:
    """Write a file, whole or not at all.

    Raises:
        OutputError: The folder can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_sidecar(path: Path, make: Callable[[Any], Content], holds: str) -> Content | None:
    """Read a file; None where there is none.

    Args:
        path: The file.
        make: Takes what the file holds; KeyError, TypeError or ValueError where that is something else.
        holds: What it should hold, for the message.

    Raises:
        DataError: It is damaged.
    """
    try:
        return make(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged; it holds {holds}.") from error
