"""Write files whole or not at all."""

import json
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankwise.errors import OutputError


@contextmanager
def replacing(path: Path, *, durably: bool = False) -> Generator[Path]:
    """Give a temporary name beside `path`; on success it is renamed to `path`, else removed. Makes the folder.

    Args:
        path: The file to write.
        durably: Have the disk hold the renaming when this returns.

    Raises:
        OutputError: The folder or the file can't be written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        if durably:
            _flush(path.parent)
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror or error}); give another directory.") from error
    finally:
        with suppress(OSError):  # where the folder can't be written nothing was left in it
            temporary.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and have the disk hold it: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OutputError: It can't be written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_durably(Path(folder, "a.txt"), b"whole")
        ...     Path(folder, "a.txt").read_bytes()
        b'whole'
    """
    with replacing(path, durably=True) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, in place.

    safetensors writes several entries in an order that differs from process to process; sorted, equal content makes
    equal files. The header keeps its length, as only the order of its parts changes.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def interrupts_ignored() -> Generator[None]:
    """Let Ctrl-C and SIGTERM pass unheard inside this block: for the seconds in which files that belong together are
    written.

    Outside the main thread nothing happens, as an interrupt never arrives there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
