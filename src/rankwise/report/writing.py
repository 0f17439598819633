"""Write a file whole or not at all."""

import os
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
