"""One process at a time in a directory."""

import os
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankwise.errors import BusyError, OutputError

LOCK = ".rankwise.lock"
"""The file that a run holds locked; the system frees it when the process ends, however it ends."""


_held: list[int] = []
"""Descriptors of the locks that this process holds."""


def let_go() -> None:
    """Let go of what a forked process has inherited, so that its locks end with the process that took them."""
    while _held:
        os.close(_held.pop())


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Lock a directory for one run; create it if needed, and remove it if it stays empty.

    Where the file system knows no locks, nothing is held.

    Raises:
        BusyError: Another run holds it.
        OutputError: It can't be written to.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with locked(Path(folder)):
        ...         [path.name for path in Path(folder).iterdir()]
        ['.rankwise.lock']
    """
    made = [place for place in (directory, *directory.absolute().parents) if not place.exists()]
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _hold(path)
    except OSError as error:
        raise OutputError(
            f"{directory} can't be written to ({error.strerror or error}); give another directory."
        ) from error
    _held.append(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        _held.remove(descriptor)
        os.close(descriptor)
        for place in made:
            with suppress(OSError):  # it holds something now
                place.rmdir()


@contextmanager
def staging(folder: Path) -> Generator[Path]:
    """Yield an empty folder next to `folder`, which becomes `folder` on success and is removed otherwise.

    What a killed process has left there is removed first; what is not Rankwise's is not.

    Args:
        folder: It must not be there, or be empty.

    Raises:
        OutputError: Another process writes to it, or it can't be made.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with staging(Path(place, "new")) as staged:
        ...         _ = (staged / "a.txt").write_text("whole")
        ...     [path.name for path in Path(place, "new").iterdir()]
        ['a.txt']
    """
    beside = folder.with_name(f".{folder.name}.unfinished")
    if beside.is_symlink() or (beside.exists() and not (beside / LOCK).exists() and any(beside.iterdir())):
        raise OutputError(f"{beside}, where {folder.name} is prepared, exists and is not rankwise's; move it away.")
    with locked(beside):
        try:
            for path in beside.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield beside
            (beside / LOCK).unlink()
            if folder.exists():
                folder.rmdir()
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _hold(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _locks(descriptor, path):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locks(descriptor: int, path: Path) -> bool:
    """Lock an open file; False where it was removed meanwhile by the run that held it."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace")
        raise BusyError(
            f"{path.parent} is in use by another run of rankwise ({holder or 'just begun'}); wait until it has "
            "ended, or give another directory."
        ) from None
    except OSError:
        pass
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
