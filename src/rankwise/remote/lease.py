"""One process at a time in a folder of an object store, which knows no locks.

A claim is an object, `claim-000007`, that is created only where there is none of its name. Its holder puts another
object, its beat, every few seconds. A process takes over by creating the next claim, where the beat is old by the
store's own clock, or where the holder was a process of this machine that has ended. So of several processes one wins,
and a holder that was paused for long notices, before it writes again, that the claim is no longer its own.
"""

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from rankwise.errors import BusyError, OutputError
from rankwise.remote.store import ObjectStore

HELD_FOR, BEAT_EVERY = 60.0, 10.0
"""Seconds for which a holder without a beat is believed to be alive, and between its beats."""

MOST_TRIES = 20
"""Times that a claim may vanish while it is read: others take and release it."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim.

    Args:
        number: The claim's.
        token: The process's, for this claim.
        process: The process in words.
        action: What it does: "train" or "decide".
        machine: Identifies the machine and its table of processes; empty where that isn't known.
        pid: Its number there.
    """

    number: int
    token: str
    process: str
    action: str
    machine: str
    pid: int

    @property
    def has_ended(self) -> bool:
        """Whether it was a process of this machine that is no longer there."""
        if not self.machine or self.machine != machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False


def machine() -> str:
    """Identify this machine's running system and the table of processes that this one is in; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


class Lease:
    """The right to write into a folder of a store.

    Args:
        store: Where.
        folder: The name of the folder that holds claims and beats.
        what: Names what is held, in messages.
        action: What it is held for.
    """

    def __init__(self, store: ObjectStore, folder: str, what: str, action: str = "train") -> None:
        self._store, self._folder, self._what = store, folder, what
        self._me = Holder(
            0, uuid4().hex, f"process {os.getpid()} on {socket.gethostname()}", action, machine(), os.getpid()
        )
        self._number = 0

    def take(self) -> None:
        """Take it.

        Raises:
            BusyError: Another process holds it.
            OutputError: The store can't be reached.
        """
        self._store.write(self._beat(self._me.token), b"")
        try:
            for _ in range(MOST_TRIES):
                if self._tried():
                    return
        except BaseException:
            with suppress(OutputError):
                self._store.remove([self._beat(self._me.token)])
            raise
        raise BusyError(f"{self._what} is in use by other runs of rankwise; try again later.")

    def _tried(self) -> bool:
        """Try once; False where a claim vanished meanwhile."""
        holder = self.holder()
        if holder is not None and self._lives(holder, self.last_beat()):
            raise BusyError(
                f"{self._what} is in use by another run of rankwise ({holder.process}); wait until it has ended (if it "
                f"was killed elsewhere, {HELD_FOR:g} seconds), or give another directory."
            )
        number = 1 if holder is None else holder.number + 1
        mine = {"token": self._me.token, "process": self._me.process, "action": self._me.action}
        mine |= {"machine": self._me.machine, "pid": self._me.pid}
        if not self._store.create(self._claim(number), json.dumps(mine).encode()):
            return False
        self._number = number
        self.check()  # a store that can't create exclusively has perhaps let another in
        if holder is not None:
            self._store.remove([self._claim(holder.number), self._beat(holder.token)])
        return True

    def holder(self) -> Holder | None:
        """The process that has the newest claim; None without one.

        Raises:
            OutputError: The store can't be read.
        """
        claims = [match for name in self._store.names(self._folder) if (match := re.search(r"/claim-(\d+)$", name))]
        if not claims:
            return None
        number = max(int(match[1]) for match in claims)
        try:
            content: dict[str, Any] = json.loads(self._store.read(self._claim(number)))
            return Holder(number, **content)
        except FileNotFoundError:  # released just now
            return None
        except (ValueError, TypeError) as error:
            raise OutputError(f"{self._store.url}/{self._claim(number)} is no claim of rankwise; remove it.") from error

    def living_holder(self, now: datetime) -> Holder | None:
        """The process that has the newest claim, where it is believed to be alive.

        Args:
            now: The time, by the store's clock.

        Raises:
            OutputError: The store can't be read.
        """
        holder = self.holder()
        return holder if holder is not None and self._lives(holder, now) else None

    def last_beat(self) -> datetime:
        """When this process's last beat was put, by the store's clock.

        Raises:
            BusyError: It was removed by the process that has taken the lease over.
            OutputError: The store can't be read.
        """
        try:
            return self._store.modified(self._beat(self._me.token))
        except FileNotFoundError as error:
            raise BusyError(f"{self._what} was taken over by another run of rankwise.") from error

    def _lives(self, holder: Holder, now: datetime) -> bool:
        if holder.has_ended:
            return False
        try:
            last = self._store.modified(self._beat(holder.token))
        except FileNotFoundError:
            return False  # a beat is put before the claim, and removed after it
        return (now - last).total_seconds() < HELD_FOR

    def check(self) -> None:
        """Make sure that it is still held.

        Raises:
            BusyError: Another process has taken it.
            OutputError: The store can't be read.
        """
        holder = self.holder()
        if holder is None or holder.token != self._me.token:
            by = f" by {holder.process}" if holder is not None else ""
            raise BusyError(
                f"{self._what} was taken over{by}, as this process had not answered for long; nothing more is written."
            )

    def beat(self) -> None:
        """Show that the holder is alive.

        Raises:
            OutputError: The store can't be written.
        """
        self._store.write(self._beat(self._me.token), b"")

    def release(self) -> None:
        """Give it back; does nothing where another process has taken it.

        Raises:
            OutputError: The store can't be written.
        """
        with suppress(BusyError):
            self.check()
            self._store.remove([self._claim(self._number)])
        self._store.remove([self._beat(self._me.token)])

    def _claim(self, number: int) -> str:
        return f"{self._folder}/claim-{number:06}"

    def _beat(self, token: str) -> str:
        return f"{self._folder}/beat-{token}"


@contextmanager
def beating(lease: Lease, lost: Callable[[], None]) -> Generator[None]:
    """Hold a lease inside the block: take it, show every few seconds that this process lives, release it.

    Args:
        lease: The lease.
        lost: Called, in another thread, once another process has taken it.

    Raises:
        BusyError: Another process holds it.
        OutputError: The store can't be reached.
    """
    lease.take()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_EVERY):
            try:
                lease.beat()
                lease.check()
            except BusyError:
                lost()
                return
            except OutputError:
                continue  # the store does not answer now

    thread = threading.Thread(target=beat, name="rankwise-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OutputError):  # without its beat it lasts no longer than a minute
            lease.release()
