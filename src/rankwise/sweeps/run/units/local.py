"""Packs train as units in processes of this machine, each with one thread.

A model that is too small to share its products among threads keeps one core busy; two packs keep two. A process is
forked for each unit, so it has the base, the data and all functions as they are, in memory that all share until it is
written.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, current_process
from pathlib import Path
from pickle import PickleError
from typing import Any, final

import torch

from rankwise.errors import BusyError, ConfigError, PackError
from rankwise.locking import let_go
from rankwise.sweeps.run.units.context import PendingUnit, StageContext, units_of
from rankwise.sweeps.run.units.here import ENDS_IN, trained_here
from rankwise.sweeps.run.units.train import TOLD, give_up
from rankwise.sweeps.run.units.unit import Unit
from rankwise.sweeps.run.units.worker import UnitsWorker
from rankwise.sweeps.run.worker import Worker
from rankwise.train.events import Event, Message
from rankwise.train.machine.interrupts import Stop, stop_on_signals

MOST = 8
"""Processes at most, where none are asked for: a sweep has few packs, and small ones cost more for each run."""

TOO_LARGE_AFTER = 2
"""Times that the system may end a unit's process before its pack is split."""


def can_fork() -> bool:
    """Whether processes can be forked here with torch in them: on Linux."""
    return sys.platform == "linux"


def suggested(device: torch.device) -> int:
    """The number of processes that suits a small model: one for each of torch's threads, and 1 on a GPU."""
    if device.type != "cpu" or not can_fork() or current_process().daemon:  # which may have no children
        return 1
    return min(torch.get_num_threads(), MOST)


@final
@dataclass(frozen=True)
class LocalProcesses:
    """Train packs in processes on this machine, each with one thread; for small models on a CPU, on Linux.

    Args:
        n: How many train at the same time.

    Raises:
        ConfigError: There can't be so many, or none can be forked.

    Examples:
        >>> LocalProcesses(0)
        Traceback (most recent call last):
        rankwise.errors.ConfigError: The number of processes is 0; it must be a whole number of at least 1.
    """

    n: int
    _threads: list[int] = field(default_factory=list[int], repr=False, compare=False)
    _notes: list[str] = field(default_factory=list[str], repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"The number of processes is {self.n}; it must be a whole number of at least 1.")
        if not can_fork():
            raise ConfigError(f"Packs train in several processes on Linux alone, and this is {sys.platform}.")

    @property
    def at_once(self) -> int:
        """As many packs as there are processes."""
        return self.n

    @property
    def in_one_memory(self) -> int:
        """All processes share this machine's memory."""
        return self.n

    def begin(self, directory: Path) -> None:
        """Compute with one thread from here on, as the processes do: last bits depend on it."""
        self._threads.append(torch.get_num_threads())
        torch.set_num_threads(1)
        self._notes[:] = [f"Up to {self.n} packs train at the same time, each in a process with one thread."]

    def close(self) -> None:
        """Compute with all threads again."""
        if self._threads:
            torch.set_num_threads(self._threads.pop())

    def worker(self, context: StageContext, due: Callable[[], bool]) -> Worker:
        """The worker of a stage.

        Raises:
            ConfigError: There is no run directory, or the model is on another device.
        """
        device = next(context.model.parameters()).device
        if device.type != "cpu":
            raise ConfigError(f"Packs train in several processes on the CPU alone, and the model is on {device}.")
        return UnitsWorker(context, units_of(context), self)

    def run(self, pending: Sequence[PendingUnit], context: StageContext) -> Generator[Event | Unit]:
        """Train units, as many at a time as there are processes.

        Raises:
            BusyError: Another process trains one, and not only for as long as it takes to end without its driver.
            KeyboardInterrupt: Asked to stop; units continue from their last checkpoints.
            PackError: The process of a unit died.
        """
        queue = deque(sorted(pending, key=lambda one: -len(one.runs)))  # what takes long begins first
        ends = time.monotonic() + ENDS_IN
        deaths: Counter[int] = Counter()
        children: dict[Connection, _Child] = {}
        yield from map(Message, self._notes)
        self._notes.clear()
        try:
            while queue or children:
                if context.stop.asked:
                    raise KeyboardInterrupt
                while queue and len(children) < self.n:
                    child = _Child(queue.popleft(), context)
                    children[child.events] = child
                for events in wait([*children], timeout=0.5):
                    child = children[events]  # pyright: ignore[reportArgumentType]
                    try:
                        event = child.events.recv()
                    except EOFError:
                        del children[child.events]
                        yield from _ended(child, context, deaths, queue)
                        continue
                    if isinstance(event, BusyError) and time.monotonic() < ends:
                        time.sleep(0.5)
                        child.refused = True
                    elif isinstance(event, BaseException):
                        raise event
                    else:
                        yield event
        finally:
            for child in children.values():
                child.process.terminate()
            for child in children.values():
                child.process.join()


class _Child:
    """A process that trains a unit.

    Args:
        one: The unit.
        context: The context of its stage.
    """

    def __init__(self, one: PendingUnit, context: StageContext) -> None:
        fork = get_context("fork")
        self.one, self.refused = one, False
        self.events, told = fork.Pipe(duplex=False)
        self.process: BaseProcess = fork.Process(
            target=_train, args=(one, context, told, os.getpid()), name=f"unit {one.unit.number}", daemon=True
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of locks that other threads may hold. The process uses none of theirs: it computes,
            # writes files, and sends events.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        told.close()


def _ended(
    child: _Child, context: StageContext, deaths: Counter[int], queue: deque[PendingUnit]
) -> Generator[Event | Unit]:
    """Handle the end of a process: its unit is done, or another continues it."""
    child.process.join()
    unit, code = child.one.unit, child.process.exitcode
    if unit.done:
        yield unit
        return
    queue.append(child.one)
    if child.refused:
        return
    deaths[unit.number] += 1
    if deaths[unit.number] < TOO_LARGE_AFTER:
        yield Message(f"The process of unit {unit.number} died; another continues from its last checkpoint.")
    elif code == -signal.SIGKILL:  # as the system does where memory runs out
        give_up(unit, child.one.runs, context.model, context.problem)
        queue.pop()
        yield unit
    else:
        what = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        raise PackError(
            f"The process of unit {unit.number} died twice ({what}); train in one process, which says more."
        )


class _ChildStop(Stop):
    """Asked to stop by a signal, before the fork already, or by the end of the driver.

    Args:
        before: What the driver had heard.
        driver: Its process.
    """

    def __init__(self, before: Stop, driver: int) -> None:
        self.heard = Stop()
        self._before, self._driver = before, driver

    @property
    def asked(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.heard.asked or self._before.asked or os.getppid() != self._driver


def _train(one: PendingUnit, context: StageContext, told: Any, driver: int) -> None:
    """Train a unit in a forked process, and send its events to the driver."""
    # Ctrl-C reaches all processes of a terminal, and the driver passes it on as SIGTERM: a second signal would end a
    # process before it has written its state.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    let_go()
    torch.set_num_threads(1)
    stop = _ChildStop(context.stop, driver)
    with stop_on_signals() as stop.heard:
        try:
            for event in trained_here(one, replace(context, stop=stop)):
                if isinstance(event, TOLD):
                    told.send(event)
        except (KeyboardInterrupt, BrokenPipeError):
            return
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            try:
                told.send(error)  # the driver raises it
            except (PickleError, TypeError, AttributeError):
                told.send(PackError(f"{type(error).__name__}: {error}"))
            raise SystemExit(1) from error
