"""Write files whole or not at all."""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankwise.errors import OutputError


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary name beside `path`; on success it is renamed to `path`, else removed. Makes the folder.

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
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror or error}); give another directory.") from error
    finally:
        with suppress(OSError):  # where the folder can't be written nothing was left in it
            temporary.unlink(missing_ok=True)


@contextmanager
def interrupts_ignored() -> Generator[None]:
    """Let Ctrl-C pass unheard inside this block: for the seconds in which files that belong together are written.

    Outside the main thread nothing happens, as an interrupt never arrives there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
