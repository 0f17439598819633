"""Objects under a URL, through fsspec. An object is there whole or not at all: a put replaces it in one step."""

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, OutputError

EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""Protocol -> its package, and the extra that has it."""


def url_of(place: str | Path) -> str | None:
    """Return the URL that a place names; None for a path of this machine.

    `pathlib` takes one of the slashes from a URL; it is put back.

    Examples:
        >>> url_of("s3://bucket/run/"), url_of(Path("s3://bucket/run")), url_of("runs/last"), url_of("C:/runs")
        ('s3://bucket/run', 's3://bucket/run', None, None)
    """
    parts = re.fullmatch(r"([a-z][a-z0-9+.-]+):/{1,2}(.*?)/*", str(place))
    return f"{parts[1]}://{parts[2]}" if parts else None


class ObjectStore:
    """The objects whose names begin with a URL; names are relative to it.

    Args:
        url: Such as s3://bucket/run.

    Raises:
        ConfigError: A package is missing, or fsspec doesn't know the protocol.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        protocol = url.partition(":")[0]
        if protocol in ("file", "local"):
            raise ConfigError(f"{url} is on this machine; give its path, {url.partition('://')[2]}.")
        try:
            # Other processes write here too, so what was listed before counts for nothing.
            files, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            package, extra = EXTRAS.get(protocol, (None, None))
            what = f'the package "{package}", of the extra "{extra}": run pip install ".[{extra}]" in a checkout'
            raise ConfigError(f"{url} needs {what if package else f'a package ({error})'}.") from error
        except ValueError as error:
            raise ConfigError(f"{url} can't be used ({error}); give a local path, or s3://bucket/folder.") from error
        self.url = url
        self._files: Any = files
        self._root = str(root).rstrip("/")

    def names(self, under: str = "") -> list[str]:
        """The names of all objects, or of those in a folder.

        Raises:
            OutputError: The store can't be read.
        """
        found: list[str] = []
        with self._reached("read"), suppress(FileNotFoundError):
            found = list(self._files.find(self._path(under)))
        start = len(self._root) + 1
        return sorted(str(name)[start:] for name in found if not str(name).endswith("/"))

    def read(self, name: str) -> bytes:
        """Return an object.

        Raises:
            FileNotFoundError: There is none.
            OutputError: The store can't be read.
        """
        with self._reached("read"):
            return self._files.cat_file(self._path(name))

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file.

        Raises:
            FileNotFoundError: There is none.
            OutputError: The store can't be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reached("read"):
            self._files.get_file(self._path(name), str(path))

    def write(self, name: str, data: bytes) -> None:
        """Put an object; one of the same name is replaced.

        Raises:
            OutputError: It can't be written.
        """
        with self._reached("written", makes=True):
            self._files.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object unless there is one of its name; of two processes that try, one succeeds.

        Returns:
            Whether it was put.

        Raises:
            OutputError: It can't be written.
        """
        with self._reached("written", makes=True):
            try:
                self._files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def upload(self, path: Path, name: str) -> None:
        """Put a file's content; an object of that name is replaced.

        Raises:
            FileNotFoundError: There is no such file.
            OutputError: It can't be written.
        """
        try:
            with self._reached("written", makes=True):
                self._files.put_file(str(path), self._path(name))
        except OutputError as error:
            if path.exists():
                raise
            raise FileNotFoundError(str(path)) from error

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, in this order; one that is not there is passed over.

        Raises:
            OutputError: One can't be removed.
        """
        with self._reached("written"):
            for name in names:
                with suppress(FileNotFoundError):
                    self._files.rm_file(self._path(name))

    def modified(self, name: str) -> datetime:
        """When an object was last put, by the store's clock.

        Raises:
            FileNotFoundError: There is none.
            OutputError: The store can't be read.
        """
        with self._reached("read"):
            return self._files.modified(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _reached(self, action: str, *, makes: bool = False) -> Generator[None]:
        """Turn a store's errors into one; where an object is made, a missing one is the bucket."""
        # Each store has its own errors; botocore's are not even OSErrors.
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not makes:
                raise
            raise OutputError(f"{self.url} can't be {action} ({_words(error)}).") from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
