"""A run directory on an object store: worked on in a local folder, which is mirrored there.

Everything that reads and writes runs does so with files. What is added here is the way there and back: what a process
needs is copied to a temporary folder; what it writes is copied to the store as it is written, and before the process
says that it has ended. A lease in the store takes the place of the lock of a file system.
"""

import _thread
import atexit
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

from rankwise.errors import BusyError, OutputError, RankwiseError
from rankwise.locking import LOCK
from rankwise.remote.lease import Lease, beating
from rankwise.remote.mirror import Mirror, mirroring, say
from rankwise.remote.store import ObjectStore
from rankwise.results import read_results
from rankwise.sweeps.plan.plan import FILE as PLAN
from rankwise.sweeps.storage.owned import (
    ABOUT,
    ADAPTERS,
    BASE_FILE,
    BEST,
    EARLIER,
    RUN_MARK,
    SHIP,
    STAGED,
    UNFINISHED,
    UNIT,
    UNITS,
)

LOGS = "logs"
"""The folder of loggers' files, which grow with every step."""

TRAIN, DECIDE = "train", "decide"

_copies: ContextVar[tuple[Mirror, ...]] = ContextVar("copies", default=())
"""Local folders that stand for URLs now."""

Names = Callable[[str], bool]


def shown(path: str | Path) -> str:
    """Return a path as the user knows it: inside a working copy, the URL that it stands for.

    Examples:
        >>> shown(Path("runs", "last"))
        'runs/last'
    """
    return _with_urls(str(path))


def copied(directory: Path) -> None:
    """Wait until the store holds what was written to a run directory and no longer what was removed; does nothing in a
    directory that is no working copy.

    The store is written from time to time, so a file that stands for a moment may never get there: one that others must
    not come before is written, and this is called.

    Raises:
        BusyError: Another process writes there now.
        OutputError: The store can't be written.
    """
    for mirror in _copies.get():
        if directory.is_relative_to(mirror.folder):
            mirror.push_all(say)


@contextmanager
def run_copy(url: str, *, continues: bool = False, decides: bool = False, whole: bool = False) -> Generator[Path]:
    """Work on a run: the only process that does, inside the block.

    Args:
        url: The run directory.
        continues: Whether the run there is resumed or extended. The earlier adapters of one that is extended are
            needed, as they are cut to smaller ranks again.
        decides: Whether it only decides; units may then be trained elsewhere at the same time.
        whole: Whether all earlier adapters are needed, and the folder stays until this process ends.

    Yields:
        The local folder.

    Raises:
        BusyError: Another process works on the run or, unless it only decides, on one of its units.
        OutputError: The store can't be read or written.
    """
    store = ObjectStore(url)
    lease = Lease(store, LOCK, url, DECIDE if decides else TRAIN)

    def extended() -> bool:
        return not _holds_unfinished(store) or bool(store.names(f"{UNFINISHED}/{EARLIER}"))

    adapters = whole or (continues and extended())

    def needed(name: str) -> bool:
        return adapters or not name.startswith(f"{ADAPTERS}/")

    with _copy(store, lease, needed, placeholders=True, stays=whole) as folder:
        if not decides:
            _check_units(store, lease)
        yield folder
    if not _holds_unfinished(store):
        locks = [name for name in store.names(UNFINISHED) if f"/{LOCK}/" in name]
        store.remove(locks)  # of units whose processes were killed


@contextmanager
def unit_copy(url: str, number: int) -> Generator[Path]:
    """Train a unit of a run: the only process that does, inside the block.

    Args:
        url: The run directory.
        number: The unit's.

    Yields:
        The local folder, without other units.

    Raises:
        BusyError: Another process trains the unit, or the whole run.
        OutputError: The store can't be read or written.
    """
    store = ObjectStore(url)
    unit = f"{UNFINISHED}/{UNITS}/{number:06}"

    known = bool(store.names(unit))  # else the message names those that there are

    def needed(name: str) -> bool:
        if name.startswith(f"{UNFINISHED}/{UNITS}/"):
            return name.startswith(f"{unit}/") or (not known and name.endswith(f"/{UNIT}"))
        return name == RUN_MARK or (name.startswith(f"{UNFINISHED}/") and "/stage-" not in name)

    if not known:
        with _copy(store, None, needed) as folder:
            yield folder
        return
    lease = Lease(store, f"{unit}/{LOCK}", f"Unit {number} of {url}")
    with _copy(store, lease, needed) as folder:
        run = Lease(store, LOCK, url)
        holder = run.living_holder(lease.last_beat())
        if holder is not None and holder.action == TRAIN:
            raise BusyError(f"{url} is in use by another run of rankwise ({holder.process}), which trains its units.")
        yield folder


@contextmanager
def read_copy(url: str, *, writes_report: bool = False, adapters: bool = False) -> Generator[Path]:
    """Read a run's results, or an adapter.

    Args:
        url: A run directory, an adapter in one (or its `best` or `ship`), or any folder of an adapter.
        writes_report: Whether the run's report is written.
        adapters: Whether all adapters of a run are read.

    Yields:
        The local folder.

    Raises:
        OutputError: The store can't be read or written.
    """
    run, inner = _run_and_adapter(url)
    store = ObjectStore(run)
    is_run = bool(inner) or RUN_MARK in store.names()

    def needed(name: str) -> bool:
        of_run = "/" not in name or name == BASE_FILE.as_posix()
        return of_run or adapters or not is_run or bool(inner and name.startswith(f"{inner}/"))

    with _copy(store, None, needed, reads=not writes_report) as folder:
        yield folder / inner


@contextmanager
def _copy(
    store: ObjectStore,
    lease: Lease | None,
    needed: Names,
    *,
    placeholders: bool = False,
    reads: bool = False,
    stays: bool = False,
) -> Generator[Path]:
    """Work on a copy: take the lease, copy, and copy back what changes."""
    temporary = Path(tempfile.mkdtemp(prefix="rankwise-"))
    folder = temporary / (PurePosixPath(store.url).name or "run")
    mirror = Mirror(store, folder, skipped=_is_local, waits=_may_wait, removal=_removal, lease=lease)
    token = _copies.set((*_copies.get(), mirror))
    keep = False
    interruption = _Interruption()
    try:
        with ExitStack() as held:
            if lease is not None:
                held.enter_context(beating(lease, interruption))
            mirror.pull(needed, placeholders=placeholders)
            if reads:
                yield folder
                return
            try:
                with mirroring(mirror, interruption):
                    yield folder
            finally:
                interruption.end()
                keep = True  # unless all of it is in the store
                try:
                    mirror.push_all(say)
                except BusyError:
                    keep = False  # the other process has what was there when it began
                    raise
                except OutputError as error:
                    raise OutputError(
                        f"{error} What has been trained is in {folder}; copy that to {store.url}, or resume it there."
                    ) from error
                keep = False
    except RankwiseError as error:
        if not keep:
            error.args = (_with_urls(str(error)),)
        raise
    finally:
        _copies.reset(token)
        if stays and not keep:
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        elif not keep:
            shutil.rmtree(temporary, ignore_errors=True)


class _Interruption:
    """Interrupt the main thread once, however many threads notice that the store was lost to another process.

    As with Ctrl-C, training ends after the present step when it is interrupted once, and at once when it is twice.
    """

    def __init__(self) -> None:
        self._left = threading.Semaphore(1)

    def __call__(self) -> None:
        if self._left.acquire(blocking=False):
            _thread.interrupt_main()

    def end(self) -> None:
        """Interrupt no more: what is left to do checks by itself who holds the store."""
        self._left.acquire(blocking=False)


def _check_units(store: ObjectStore, mine: Lease) -> None:
    """Refuse to train a run of which another process trains a unit.

    Raises:
        BusyError: One does.
        OutputError: The store can't be read.
    """
    found = {match[1] for name in store.names(UNFINISHED) if (match := re.match(rf"(.*/{re.escape(LOCK)})/", name))}
    for folder in sorted(found):
        other = Lease(store, folder, folder).living_holder(mine.last_beat())
        if other is not None:
            number = int(PurePosixPath(folder).parent.name)
            raise BusyError(
                f"Unit {number} of {store.url} is being trained by {other.process}; wait until it has ended."
            )


def _run_and_adapter(url: str) -> tuple[str, str]:
    """The run directory of a URL and, where it is of an adapter in it, the adapter's folder."""
    head, _, last = url.rpartition("/")
    if last in (BEST, SHIP):
        with suppress(OutputError):
            results = read_results(head)
            ship = results.compressed.ship if results.compressed else None
            answer = results.answer if last == BEST else ship
            return head, (answer.adapter if answer is not None and answer.verdict != "undecided" else None) or last
    if head.rpartition("/")[2] == ADAPTERS:
        return head.rpartition("/")[0], f"{ADAPTERS}/{last}"
    return url, ""


def _holds_unfinished(store: ObjectStore) -> bool:
    return any(f"/{LOCK}/" not in name for name in store.names(UNFINISHED))


def _is_local(name: str) -> bool:
    """Whether a file is of this machine alone: a lock, a half-written file, results on their way."""
    parts = name.split("/")
    half = re.fullmatch(r"\..+\.\d+\.(tmp|mode)", parts[-1])
    return LOCK in parts or half is not None or parts[0].startswith(STAGED)


def _may_wait(name: str) -> bool:
    return name.startswith(f"{LOGS}/")


def _removal(name: str) -> tuple[bool, ...]:
    """Sort what is removed, as `owned.remove_unfinished` does: without its plan it is no run to resume; without the
    first file it is nobody's."""
    last = name.rpartition("/")[2]
    return last == ABOUT, last != PLAN


def _with_urls(text: str) -> str:
    for mirror in _copies.get():
        text = text.replace(str(mirror.folder), mirror.store.url)
    return text
