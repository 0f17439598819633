"""Packs train as units on a Ray cluster: an actor a worker, which loads the base once and trains one unit at a time.

Ray Core only. What a worker has trained lies in the run directory, not in Ray's object store; so a worker that dies
costs what its unit did since its last checkpoint, and a driver that dies can be resumed, on Ray or without.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from rankwise.errors import BusyError, ConfigError, RankwiseError, option
from rankwise.sweeps.plan.plan import fingerprints_of
from rankwise.sweeps.run.units.context import PendingUnit, StageContext, units_of
from rankwise.sweeps.run.units.in_hand import InHand
from rankwise.sweeps.run.units.train import give_up, train_unit
from rankwise.sweeps.run.units.unit import ExperimentFacts, Unit, Units
from rankwise.sweeps.run.units.worker import UnitsWorker
from rankwise.sweeps.run.worker import Worker
from rankwise.sweeps.storage.owned import EXPERIMENT
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import EpochEnded, Event, Message, Stepped
from rankwise.train.machine.interrupts import Stop
from rankwise.writing import write_durably

LOCAL, AUTO = "local", "auto"
ANSWERS_IN = 5.0
"""Seconds in which an address must answer."""

LOOK_EVERY = 5.0
"""Seconds between two looks at what the cluster has room for."""

LOW_ON_MEMORY = "running low on memory"
"""In Ray's words on a worker that it has ended to free memory. (Its words on any sudden death name memory too.)"""

TOO_LARGE_AFTER = 2
"""Times that a unit may run out of the machine's memory before it is split."""


@dataclass(frozen=True)
class Unpickled:
    """Makes an experiment that was begun from Python: from its file in the run directory."""

    path: Path

    def __call__(self) -> ExperimentFacts:
        """Read it."""
        from ray import cloudpickle  # pyright: ignore[reportMissingImports]

        pickling: Any = cloudpickle
        return pickling.loads(self.path.read_bytes())


@dataclass(frozen=True)
class WorkerContext:
    """The parts of an experiment that workers need."""

    model: Any
    problem: Any
    candidates: Any


@final
@dataclass(frozen=True, kw_only=True)
class Ray:
    """Train packs on a Ray cluster.

    Args:
        address: "local" starts Ray on this machine; "auto" takes the cluster of RAY_ADDRESS or the one that runs here;
            else host:port of a cluster's head.
        max_workers: The most workers; None for as many as the cluster has room for.
        cpus_per_worker: Also a worker's threads. None takes half of a machine's, or its share for each GPU.
        gpus_per_worker: None takes one where the cluster has some.
        make: Makes the experiment on a worker; None hands the driver's over through the run directory.

    Raises:
        ConfigError: A number can't be used, or Ray is not installed.

    Examples:
        >>> Ray(max_workers=0)
        Traceback (most recent call last):
        rankwise.errors.ConfigError: max_workers is 0; it must be a whole number of at least 1.
    """

    address: str = AUTO
    max_workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    make: Callable[[], ExperimentFacts] | None = None
    _pool: "list[Any]" = field(default_factory=list[Any], repr=False, compare=False)
    _held: "list[WorkerContext]" = field(default_factory=list[WorkerContext], repr=False, compare=False)
    _began: "list[bool]" = field(default_factory=list[bool], repr=False, compare=False)

    def __post_init__(self) -> None:
        for what in ("max_workers", "cpus_per_worker"):
            if (value := getattr(self, what)) is not None and value < 1:
                raise ConfigError(f"{option(what)} is {value}; it must be a whole number of at least 1.")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"{option('gpus_per_worker')} is {self.gpus_per_worker}; it must be 0 or more.")
        if find_spec("ray") is None:
            raise ConfigError(
                'Workers on Ray need the package "ray", of the extra "ray": run pip install ".[ray]" in a checkout.'
            )

    def hand_over(self, made: ExperimentFacts) -> None:
        """Let workers read the driver's experiment from the run directory if they can't make it themselves."""
        if self.make is None:
            self._held[:] = [WorkerContext(made.model, made.problem, made.candidates)]

    @property
    def at_once(self) -> int:
        """Packs that train at the same time: as many as the cluster has room for workers.

        Raises:
            ConfigError: The cluster does not answer, or has no room for one.
        """
        cpus, gpus = self._each()
        found = _resources()
        room = [int(found["CPU"] // cpus), *([int(found["GPU"] // gpus)] if gpus else [])]
        if min(room) < 1:
            raise ConfigError(
                f"A worker takes {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has {found['CPU']:g} and "
                f"{found['GPU']:g}; give {option('cpus_per_worker')} and {option('gpus_per_worker')}."
            )
        return min(*room, self.max_workers) if self.max_workers else min(room)

    def worker(self, context: StageContext, due: Callable[[], bool]) -> Worker:
        """The worker of a stage.

        Raises:
            ConfigError: There is no run directory, or the cluster does not answer.
            OutputError: The experiment can't be written for the workers.
        """
        units = units_of(context)
        if self._held and context.root is not None:
            from ray import cloudpickle  # pyright: ignore[reportMissingImports]

            pickling: Any = cloudpickle
            write_durably(context.root.absolute() / EXPERIMENT, pickling.dumps(self._held[0]))
        return UnitsWorker(context, units, self)

    def close(self) -> None:
        """End the workers, and Ray where it was started for this run."""
        import ray  # pyright: ignore[reportMissingImports]

        for actor in self._pool:
            ray.kill(actor)
        self._pool.clear()
        if self._began:
            self._began.clear()
            ray.shutdown()

    def run(self, pending: Sequence[PendingUnit], context: StageContext) -> Generator[Event | Unit]:
        """Train units, as many at a time as there are workers; a dead worker's unit is given to another.

        Raises:
            KeyboardInterrupt: Asked to stop; units continue from their last checkpoints.
            RankwiseError: A worker can't train a unit.
        """
        import ray  # pyright: ignore[reportMissingImports]

        work = InHand(deque(pending))
        try:
            while work.queue or work.running:
                if context.stop.asked:
                    raise KeyboardInterrupt
                self._hand_out(work, context)
                waiting: Any = [*work.running, *work.starting]
                if not waiting:
                    if not work.waits:
                        yield Message("The Ray cluster has no room for a worker now; waiting for machines.")
                    work.waits = True
                    time.sleep(0.5)
                    continue
                ready: Any = ray.wait(waiting, num_returns=1, timeout=0.5, fetch_local=False)
                for events in ready[0]:
                    yield from self._heard(events, work, context)
        finally:
            for actor in [*work.starting.values(), *(actor for actor, _ in work.running.values())]:
                ray.kill(actor)

    def _hand_out(self, work: InHand, context: StageContext) -> None:
        """Assign units to free workers, and start workers where there is room."""
        if time.monotonic() > work.looked + LOOK_EVERY:  # machines come and go
            work.looked, work.limit = time.monotonic(), _room(self)
        while work.queue and self._pool:
            one, actor = work.queue.popleft(), self._pool.pop()
            events = actor.run.options(num_returns="streaming").remote(one.unit.number, context.every)
            work.running[events] = actor, one
        # A unit is given to no worker that has not started: there may be no room for it any more.
        while len(work.starting) < len(work.queue) and len(work.running) + len(work.starting) < work.limit:
            actor = self._actor(context)
            work.starting[actor.ready.remote()] = actor

    def _heard(self, events: Any, work: InHand, context: StageContext) -> Generator[Event | Unit]:
        """Handle a worker's message: its start, an event, the end of its unit, or its death."""
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import (  # pyright: ignore[reportMissingImports]
            OutOfMemoryError,
            RayActorError,
            RaySystemError,
            RayTaskError,
            WorkerCrashedError,
        )

        try:
            if events in work.starting:
                ray.get(events)
                self._pool.append(work.starting.pop(events))
            else:
                event: Any = ray.get(next(events))
                yield event
        except StopIteration:
            actor, one = work.running.pop(events)
            self._pool.append(actor)
            yield one.unit
        except (RayActorError, RaySystemError, OutOfMemoryError, WorkerCrashedError) as error:
            one = work.bury(events, error)
            if one is None:
                return
            number = one.unit.number
            work.short[number] += isinstance(error, OutOfMemoryError) or LOW_ON_MEMORY in str(error)
            if work.short[number] >= TOO_LARGE_AFTER:
                give_up(one.unit, one.runs, context.model, context.problem)
                yield one.unit
                return
            work.queue.append(one)
            yield Message(f"The worker of unit {number} died; another continues from its last checkpoint.")
        except RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, BusyError):
                raise (cause if isinstance(cause, RankwiseError) else error) from error
            actor, one = work.running.pop(events)
            self._pool.append(actor)
            work.queue.append(one)
            time.sleep(0.5)

    def _each(self) -> tuple[int, float]:
        """CPUs and GPUs of a worker."""
        self._connect()
        found = _resources()
        gpus = float(found["GPU"] >= 1) if self.gpus_per_worker is None else self.gpus_per_worker
        share = found["CPU"] * gpus / found["GPU"] if gpus and found["GPU"] else found["CPU"] / found["nodes"] / 2
        return self.cpus_per_worker or max(1, int(share)), gpus

    def _actor(self, context: StageContext) -> Any:
        """Start a worker."""
        import ray  # pyright: ignore[reportMissingImports]

        cpus, gpus = self._each()
        units = units_of(context).folder.absolute()
        make = self.make or Unpickled(units.parent / EXPERIMENT)
        kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(UnitActor)
        return kind.remote(make, units, cpus, Path.cwd())

    def _connect(self) -> None:
        import logging

        import ray  # pyright: ignore[reportMissingImports]

        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        if self.address == LOCAL:
            ray.init(address="local", **options)
        else:
            del options["include_dashboard"]
            address = os.environ.get("RAY_ADDRESS", AUTO) if self.address == AUTO else self.address
            if address != AUTO:
                _check_address(address)
            try:
                ray.init(address=address, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"No Ray cluster answers at {address} ({' '.join(str(error).split())[:200]}); start one with "
                    "`ray start --head`, or take this machine alone with the address local."
                ) from error
        self._began.append(True)


class UnitActor:
    """A worker: trains units of one run, one at a time.

    Args:
        make: Makes the experiment.
        units: The folder of the units.
        threads: Of torch.
        place: The driver's working folder, for paths in the settings.
    """

    def __init__(self, make: Callable[[], ExperimentFacts], units: Path, threads: int, place: Path) -> None:
        import torch

        torch.set_num_threads(threads)
        if place.is_dir():
            os.chdir(place)
        self._make, self._units = make, Units(units)
        self._made: ExperimentFacts | None = None
        self._known: dict[str, str] = {}

    def ready(self) -> bool:
        """Whether it has started."""
        return True

    def run(self, number: int, every: CheckpointInterval | None) -> Generator[Event]:
        """Train a unit; yields what a display shows of it.

        Raises:
            ConfigError: The run directory can't be reached from here.
        """
        if not self._units.folder.is_dir():
            raise ConfigError(
                f"{self._units.folder} can't be reached from {socket.gethostname()}, where a worker runs; give an "
                f"{option('out')} that all machines share."
            )
        if self._made is None:
            self._made = self._make()
            self._known = fingerprints_of(self._made.model, self._made.problem)
        unit, messages = self._units.unit(number), list[str]()
        runs = unit.spec.runs_from(self._made.candidates)
        training = train_unit(
            unit, runs, self._made.model, self._made.problem, self._known, stop=Stop(), say=messages.append, every=every
        )
        for event in training:
            yield from map(Message, messages)
            messages.clear()
            if isinstance(event, Stepped | EpochEnded):
                yield event


def _resources() -> dict[str, float]:
    """The cluster's total resources and number of machines; just after joining, both may be unknown."""
    import ray  # pyright: ignore[reportMissingImports]

    end = time.monotonic() + ANSWERS_IN
    while True:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = {kind: sum(node.get(kind, 0.0) for node in alive) for kind in ("CPU", "GPU")}
        if found["CPU"] or time.monotonic() > end:
            return {**found, "nodes": max(1, len(alive))}
        time.sleep(0.1)


def _room(workers: Ray) -> int:
    """Workers that the cluster has room for now; 0 where a machine that went took the last of it."""
    try:
        return workers.at_once
    except ConfigError:
        return 0


def check_reached(url: str, address: str | None) -> None:
    """Refuse workers on other machines for a run directory that is copied to this one alone.

    Args:
        url: The run directory's, on an object store.
        address: Of the cluster; None without workers.

    Raises:
        ConfigError: Workers may run elsewhere.
    """
    if address not in (None, LOCAL):
        raise ConfigError(
            f"Workers of the Ray cluster {address} need a directory that all of its machines see, and {url} is copied "
            f"to this one alone; mount it and give its path, or take {LOCAL}, or `rankwise work` on each machine."
        )


def _check_address(address: str) -> None:
    """Refuse an address at which nothing answers soon.

    Raises:
        ConfigError: Nothing does, or it is none that can be used.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConfigError(
            f'The Ray address is "{address}"; give {LOCAL}, {AUTO}, or host:port of the cluster\'s head, on one of its '
            "machines (elsewhere, use `ray job submit`)."
        )
    try:
        socket.create_connection((host, int(port)), ANSWERS_IN).close()
    except OSError as error:
        raise ConfigError(f"Nothing answers at the Ray address {address} ({error.strerror or error}).") from error
