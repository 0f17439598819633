"""A local folder, mirrored to an object store.

Only what was written atomically is copied, in the order in which it was written, and what is gone is removed at the
end. So the store passes through states that a process killed in this folder might have left: what can be resumed from
the one can be resumed from the other.
"""

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from rankwise.errors import BusyError, OutputError
from rankwise.remote.lease import Lease
from rankwise.remote.store import ObjectStore

LOOK_EVERY = 1.0
"""Seconds between two looks for something new."""

RETRY_WITHIN = 30.0
"""Seconds between two tries where the store does not answer, at most."""

PATIENCE = 600.0
"""Seconds for which the last writes of a process are tried again."""

Stat = tuple[int, int]
"""When a file was written, in nanoseconds, and its size: these tell one content from another."""


class Mirror:
    """A local folder and its copy in a store.

    Args:
        store: The copy.
        folder: The local folder.
        skipped: Whether a name, relative to the folder, belongs to this machine alone.
        waits: Whether a new file need not be copied before others are; one that grows by the line.
        removal: Sorts the names of what is to be removed.
        lease: The right to write there.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        *,
        skipped: Callable[[str], bool] = lambda name: False,
        waits: Callable[[str], bool] = lambda name: False,
        removal: Callable[[str], tuple[bool, ...]] = lambda name: (),
        lease: Lease | None = None,
    ) -> None:
        self.store, self.folder = store, folder
        self._skipped, self._waits, self._removal, self._lease = skipped, waits, removal, lease
        self._copied: dict[str, Stat] = {}
        self._one_at_a_time = threading.Lock()

    def pull(self, needed: Callable[[str], bool], *, placeholders: bool = False) -> None:
        """Copy objects to the folder.

        Args:
            needed: Whether an object's content is needed.
            placeholders: Whether empty files stand for the others, so that their names are known; they are never
                copied back.

        Raises:
            OutputError: The store can't be read, or the folder can't be written.
        """
        try:
            for name in self.store.names():
                if not name or self._skipped(name):
                    continue
                path = self.folder / name
                if needed(name):
                    try:
                        self.store.download(name, path)
                    except FileNotFoundError:
                        continue  # another process has just removed it
                elif placeholders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                else:
                    continue
                self._copied[name] = _stat(path)
        except OSError as error:
            raise OutputError(f"{self.folder} can't be written ({error.strerror or error}); set TMPDIR.") from error

    def push(self, *, everything: bool = True) -> bool:
        """Copy what has changed to the store.

        Args:
            everything: Whether files that can wait are copied, though nothing else has changed.

        Returns:
            Whether nothing changed meanwhile; else it is to be called again.

        Raises:
            BusyError: Another process writes there now.
            OutputError: The store can't be written.
        """
        with self._one_at_a_time:
            return self._push(everything)

    def _push(self, everything: bool) -> bool:
        here = self._files()
        changed = [name for name, stat in here.items() if self._copied.get(name) != stat]
        gone = [name for name in self._copied if name not in here]
        if not gone and (not changed or (not everything and all(map(self._waits, changed)))):
            return True
        if self._lease is not None:
            self._lease.check()
        # A manifest is written after what it names; within one tick of the clock its name shows that.
        for name in sorted(changed, key=lambda name: (here[name][0], name.endswith(".json"), name)):
            try:
                self.store.upload(self.folder / name, name)
            except FileNotFoundError:
                return False
            self._copied[name] = here[name]
        for name in sorted(gone, key=lambda name: (*self._removal(name), name)):
            self.store.remove([name])
            del self._copied[name]
        return True

    def push_all(self, say: Callable[[str], None]) -> None:
        """Copy everything that has changed, however long the store does not answer (ten minutes at most).

        Raises:
            BusyError: Another process writes there now.
            OutputError: The store can't be written.
        """
        end, pause, told = monotonic() + PATIENCE, 1.0, False
        while True:
            try:
                if self.push():
                    return
            except BusyError:
                raise
            except OutputError as error:
                if monotonic() > end:
                    raise
                if not told:
                    say(f"{error} It is tried again for {PATIENCE / 60:g} minutes.")
                told = True
                threading.Event().wait(pause)
                pause = min(2 * pause, RETRY_WITHIN)

    def _files(self) -> dict[str, Stat]:
        """Every file's name, with what tells its content from another's.

        Raises:
            OutputError: A folder can't be read: its files would seem to be gone.
        """
        files: dict[str, Stat] = {}
        try:
            for place, folders, names in os.walk(self.folder, onerror=_unless_gone):
                here = Path(place).relative_to(self.folder)
                folders[:] = [name for name in folders if not self._skipped((here / name).as_posix())]
                for name in names:
                    path = self.folder / here / name
                    with suppress(FileNotFoundError):  # it is being replaced, or was removed
                        if not self._skipped((here / name).as_posix()) and not path.is_symlink():
                            files[(here / name).as_posix()] = _stat(path)
        except OSError as error:
            raise OutputError(f"{self.folder} can't be read ({error.strerror or error}).") from error
        return files


@contextmanager
def mirroring(mirror: Mirror, lost: Callable[[], None]) -> Generator[None]:
    """Copy what is written, in the background, inside the block.

    Args:
        mirror: What is copied.
        lost: Called, in another thread, once another process writes there.
    """
    over = threading.Event()

    def copy() -> None:
        pause, told = LOOK_EVERY, False
        while not over.wait(pause):
            try:
                mirror.push(everything=False)
                pause = LOOK_EVERY
            except BusyError:
                lost()
                return
            except OutputError as error:
                if not told:
                    say(f"{error} Training continues, and it is tried again.")
                told, pause = True, min(2 * pause, RETRY_WITHIN)

    thread = threading.Thread(target=copy, name="rankwise-mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(line: str) -> None:
    """Print a line for the user."""
    print(f"rankwise: {line}", file=sys.stderr)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _stat(path: Path) -> Stat:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
