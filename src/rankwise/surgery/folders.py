"""New folders for adapters made of others: not over anything, and with the small files that tell how to use them."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rankwise.adapter_files.peft.config import CONFIG_FILE
from rankwise.errors import OutputError
from rankwise.locking import staging

_CARRIED = {".json", ".txt", ".model", ".jinja"}
"""Endings of files beside an adapter that hold for another adapter of its task: labels, prompts, tokenizer. Not the
model card, whose figures are of that adapter."""


@contextmanager
def new_folder(out: str | os.PathLike[str], beside: Path | None = None) -> Generator[Path]:
    """Yield a folder that becomes `out` when all is written.

    Args:
        out: The new folder.
        beside: An adapter of the same task, whose labels, prompts and tokenizer are copied.

    Raises:
        OutputError: It is there and not empty, or can't be written.
    """
    folder = Path(os.path.abspath(out))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there and not empty; give a new folder.")
    try:
        with staging(folder) as staged:
            for path in sorted(beside.iterdir()) if beside else ():
                if path.is_file() and path.suffix in _CARRIED and path.name != CONFIG_FILE:
                    shutil.copyfile(path, staged / path.name)
            yield staged
    except OSError as error:
        raise OutputError(f"The adapter can't be written to {folder}: {error.strerror or error}.") from error
