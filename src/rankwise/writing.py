"""Write files atomically."""

import errno
import hashlib
import json
import os
import signal
import stat
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from rankwise.errors import CheckpointError, OutputError


@contextmanager
def replacing(path: Path, *, durably: bool = False) -> Generator[Path]:
    """Yield a temporary path in the same folder, renamed to `path` on success, else removed. Makes the folder.

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
            flush(path.parent)
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror or error}); give another directory.") from error
    finally:
        with suppress(OSError):  # where the folder can't be written nothing was left in it
            temporary.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes | Iterable[Any]) -> None:
    """Write a file atomically and durably: temporary file, fsync, rename, fsync of the folder.

    Args:
        path: The file.
        data: Its bytes, or parts of them, each made when those before it are written.

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
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())


def check_not_read(path: Path, read: Iterable[Path]) -> None:
    """Refuse to write a file over what the same command reads.

    Args:
        path: The file.
        read: Files, and folders of which everything is read.

    Raises:
        OutputError: It is one of these files, or lies in one of these folders.
    """
    for one in read:
        same = one.is_file() and path.exists() and path.samefile(one)
        inside = one.is_dir() and path.resolve().is_relative_to(one.resolve())
        if same or inside:
            where = "is" if same else "lies in"
            raise OutputError(f"{path} {where} {one}, which is read; give --out another place.")


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


def flush(path: Path) -> None:
    """Flush a written file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def interrupts_ignored() -> Generator[None]:
    """Ignore Ctrl-C and SIGTERM inside this block: for the seconds in which files that belong together are
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


def plain_mode(path: Path) -> None:
    """Set a new file's permissions by the user's umask.

    safetensors and `tempfile` make files that only their owner may read, whatever the umask.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666))
        # The umask can't be read without changing it for all threads; a file made under it shows it.
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink(missing_ok=True)


def read_regular(path: Path) -> bytes:
    """Return a file's content; a pipe or a device, which may never end, is refused.

    Raises:
        OSError: It can't be read, or is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()


def write_checked(path: Path, form: str, content: Any) -> None:
    """Write JSON with its format and a checksum, durably; `read_checked` reads it.

    Raises:
        OutputError: It can't be written.
    """
    document = {"format": form, "sha256": sha256_of(content), "content": content}
    write_durably(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_checked(path: Path, form: str) -> Any:
    """Return the content of a file that `write_checked` has written.

    Raises:
        CheckpointError: It is missing, damaged, or of another format.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checked(Path(folder, "a.json"), "numbers-1", [1, 2])
        ...     read_checked(Path(folder, "a.json"), "numbers-1")
        [1, 2]
    """
    try:
        document: Any = json.loads(read_regular(path))
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); there is no unfinished run to resume."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON; start the run again.") from error
    found: Any = cast("dict[str, Any]", document).get("format") if isinstance(document, dict) else None
    if found != form:
        raise CheckpointError(f'{path} has the format "{found}"; this version of rankwise reads "{form}".')
    if document.get("sha256") != sha256_of(document.get("content")):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; start the run again.")
    return document["content"]


def sha256_of(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys.

    Examples:
        >>> sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
