"""Packs train as units on a Ray cluster: an actor a worker, which loads the base once and trains one unit at a time.

Ray Core only. What a worker has trained lies in the run directory, not in Ray's object store; so a worker that dies
costs what its unit did since its last checkpoint, and a driver that dies can be resumed, on Ray or without.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from rankwise.errors import BusyError, ConfigError, RankwiseError, option
from rankwise.sweeps.run.units.actor import FromFile, UnitActor, WorkerContext, write_experiment
from rankwise.sweeps.run.units.address import AUTO, LOCAL, require_ray
from rankwise.sweeps.run.units.cluster import compare, join_cluster, machines, nodes, this_machine
from rankwise.sweeps.run.units.context import PendingUnit, StageContext, units_of
from rankwise.sweeps.run.units.in_hand import InHand
from rankwise.sweeps.run.units.train import give_up
from rankwise.sweeps.run.units.unit import ExperimentFacts, Unit
from rankwise.sweeps.run.units.worker import UnitsWorker
from rankwise.sweeps.run.worker import Worker
from rankwise.sweeps.storage.owned import EXPERIMENT
from rankwise.train.events import Event, Message, Stepped

LOOK_EVERY = 5.0
"""Seconds between two looks at what the cluster has room for."""

LOW_ON_MEMORY = "running low on memory"
"""In Ray's words on a worker that it has ended to free memory. (Its words on any sudden death name memory too.)"""

TRIED_AGAIN = 1
"""Times that a unit is tried again on a new worker after an error: a GPU may have failed, or the code is wrong."""

TOO_LARGE_AFTER = 2
"""Times that a unit may run out of the machine's memory before it is split."""


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
    _notes: "list[str]" = field(default_factory=list[str], repr=False, compare=False)

    def __post_init__(self) -> None:
        for what in ("max_workers", "cpus_per_worker"):
            if (value := getattr(self, what)) is not None and value < 1:
                raise ConfigError(f"{option(what)} is {value}; it must be a whole number of at least 1.")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"{option('gpus_per_worker')} is {self.gpus_per_worker}; it must be 0 or more.")
        require_ray()

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
        found = nodes()
        room = sum(node.room(cpus, gpus) for node in found)
        if room < 1:
            most = max(found, key=lambda node: (node.gpus, node.cpus))
            raise ConfigError(
                f"A worker takes {cpus:g} CPUs and {gpus:g} GPUs, and the largest machine of the Ray cluster has "
                f"{most.cpus:g} CPUs and {most.gpus:g} GPUs; give smaller {option('cpus_per_worker')} and "
                f"{option('gpus_per_worker')}, or leave them out."
            )
        return min(room, self.max_workers) if self.max_workers else room

    @property
    def in_one_memory(self) -> int:
        """Workers that share a GPU's memory or, on CPUs, a machine's."""
        cpus, gpus = self._each()
        sharing = int(1 // gpus) if gpus else max(node.room(cpus, gpus) for node in nodes())
        return max(1, min(sharing, self.max_workers or sharing))

    def begin(self, directory: Path) -> None:
        """Join the cluster, and check that its machines can take part, before anything costly.

        Raises:
            ConfigError: The cluster does not answer or has no room for a worker, or one of its machines can't read the
                run directory or lacks Rankwise.
        """
        _ = self.at_once
        if self.address != LOCAL:
            folder = directory.absolute()
            self._notes[:] = compare(machines(folder), this_machine(folder), folder)

    def worker(self, context: StageContext, due: Callable[[], bool]) -> Worker:
        """The worker of a stage.

        Raises:
            ConfigError: There is no run directory, or the cluster does not answer.
            OutputError: The experiment can't be written for the workers.
        """
        units = units_of(context)
        if self._held and context.root is not None:
            write_experiment(context.root.absolute() / EXPERIMENT, self._held.pop())
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
        yield from map(Message, self._notes)
        self._notes.clear()
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
                if not ray.wait(waiting, num_returns=1, timeout=0.5, fetch_local=False)[0]:
                    continue
                ready: Any = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
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
                if isinstance(event, Stepped):
                    work.progress(events, event.step)
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
            if work.short[number] < TOO_LARGE_AFTER:
                work.queue.append(one)
                yield Message(f"The worker of unit {number} died; another continues from its last checkpoint.")
            else:
                try:
                    give_up(one.unit, one.runs, context.model, context.problem)
                except BusyError:  # by a worker that was cut off, and trains on
                    work.queue.append(one)
                else:
                    yield one.unit
        except RayTaskError as error:
            actor, one = work.running.pop(events)
            number = one.unit.number
            if isinstance(error.cause, BusyError):
                self._pool.append(actor)
                time.sleep(0.5)
            else:
                ray.kill(actor)
                work.failures[number] += 1
                if isinstance(error.cause, RankwiseError):
                    raise error.cause from error
                if work.failures[number] > TRIED_AGAIN:
                    raise
                what = " ".join(f"{type(error.cause).__name__}: {error.cause}".split())[:200]
                yield Message(f"Unit {number} failed ({what}); a new worker continues from its last checkpoint.")
            work.queue.append(one)

    def _each(self) -> tuple[int, float]:
        """CPUs and GPUs of a worker."""
        self._join()
        found = nodes()
        n_gpus, n_cpus = sum(node.gpus for node in found), sum(node.cpus for node in found)
        gpus = float(n_gpus >= 1) if self.gpus_per_worker is None else self.gpus_per_worker
        share = n_cpus * gpus / n_gpus if gpus and n_gpus else n_cpus / len(found) / 2
        return self.cpus_per_worker or max(1, int(share)), gpus

    def _actor(self, context: StageContext) -> Any:
        """Start a worker."""
        import ray  # pyright: ignore[reportMissingImports]

        cpus, gpus = self._each()
        units = units_of(context).folder.absolute()
        make = self.make or FromFile(units.parent / EXPERIMENT)
        kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(UnitActor)
        return kind.remote(make, units, cpus, Path.cwd())

    def _join(self) -> None:
        if join_cluster(self.address):
            self._began.append(True)


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
