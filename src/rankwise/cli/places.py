"""Where results go: a new folder for each run, and `runs/last`, which points to the newest."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import count
from pathlib import Path

from rankwise.errors import AdapterFileError, OutputError

RUNS = Path("runs")
LAST = "last"

NOTHING_SAID = ("train", "training", "data", "dataset", "examples", "all", "test")
"""File names that say less than their folder's name."""


def name_of(command: str, data: str | None) -> str:
    """Name a run after its data, else after its command.

    Examples:
        >>> name_of("sweep", "banking77/train.csv"), name_of("train", "emails.jsonl"), name_of("digits", "embedded")
        ('banking77', 'emails', 'digits')
    """
    path = Path(data or "")
    # Folders and hub names have no suffix; the values of --data of "digits" name no data.
    stem = path.name if path.suffix not in (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet") else path.stem
    if stem.lower() in NOTHING_SAID:
        stem = path.absolute().parent.name
    plain = re.sub(r"[^a-z0-9._]+", "-", stem.lower()).strip("-.")[:40]
    return plain if plain and command != "digits" else command


def check_adapters(*folders: Path) -> None:
    """Refuse a run's directory, and the adapter that a run would recommend where it recommends none.

    Raises:
        AdapterFileError: It says why, and what to give instead.
    """
    from rankwise.sweeps.storage.owned import why_no_adapter

    for folder in folders:
        if not (folder / "adapter_config.json").exists() and (why := why_no_adapter(folder)):
            raise AdapterFileError(why)


@contextmanager
def new_run(name: str, parent: Path = RUNS) -> Generator[Path]:
    """Make a new folder, such as runs/2026-11-29-banking77-1, and point `last` to it; remove it if it stays empty.

    Raises:
        OutputError: It can't be made.
    """
    last = parent / LAST
    before = os.readlink(last) if last.is_symlink() else None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = _make(parent, f"{date.today().isoformat()}-{name}")
    except OSError as error:
        raise OutputError(
            f"{parent.absolute()} can't be written to ({error.strerror}); give another directory with --out."
        ) from error
    _point(last, directory.name)
    try:
        yield directory
    finally:
        with suppress(OSError):  # it holds a run
            directory.rmdir()
            _point(last, before)
            parent.rmdir()


def _make(parent: Path, stem: str) -> Path:
    numbers = count(1)
    while True:
        directory = parent / f"{stem}-{next(numbers)}"
        with suppress(FileExistsError):  # of an earlier run, or of one that has just begun
            directory.mkdir()
            return directory


def _point(last: Path, target: str | None) -> None:
    """Set or remove a link; leave a file or folder of that name alone."""
    if last.exists() and not last.is_symlink():
        return
    with suppress(OSError):  # no links on this file system
        if target is None:
            last.unlink(missing_ok=True)
            return
        temporary = last.with_name(f".{LAST}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, last)


def pointed_to(directory: Path) -> Path:
    """Return the folder itself where a link such as `runs/last` is given."""
    return directory.parent / os.readlink(directory) if directory.is_symlink() else directory
