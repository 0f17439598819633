"""One pack to its next rung: the unit of work, as plain data, and the worker that does it in this process."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, Protocol, final, runtime_checkable

import torch
from torch import nn

from rankwise.pack.memory import ran_out
from rankwise.sweeps.plan.fitting import pack_training
from rankwise.sweeps.problem import Problem, Run, Scores
from rankwise.train.events import EpochEnded, Event, RunEnded
from rankwise.train.machine.memory import give_back
from rankwise.train.state import TrainingState

BETWEEN = 1.0
"""Seconds between two looks at the losses of single steps: reading them waits for the device."""


@dataclass(frozen=True)
class PackJob:
    """One pack to its next rung. It holds no base and no data, so it can be pickled and sent to where these are; done
    twice on one kind of machine it gives the same bits.

    Args:
        pack: Its number.
        runs: All runs that the pack began with; those that the state leaves out have ended.
        state: Where training continues from; None to begin.
        until: The epoch at which it stops; None to train every run to its end.
    """

    pack: int
    runs: tuple[Run, ...]
    state: TrainingState | None = None
    until: int | None = None


@dataclass(frozen=True)
class PackState:
    """A pack as a worker hands it over.

    Args:
        pack: Its number.
        status: "under way" (the worker trains on), "over" (it has come to its rung, or every run has ended), or "too
            large" (a step did not fit into memory, and changed nothing).
        state: Of the runs that have not ended; None where all have.
        scores: Of finished runs by name, where the worker has measured them.
        notes: What the user should know of how it did that.
    """

    pack: int
    status: Literal["under way", "over", "too large"]
    state: TrainingState | None
    scores: Mapping[str, Scores] = field(default_factory=dict[str, Scores])
    notes: tuple[str, ...] = ()


@runtime_checkable
class Worker(Protocol):
    """Trains packs, in this process or elsewhere."""

    def train(self, jobs: Iterable[PackJob]) -> Generator[Event | PackState]:
        """Train packs, each to its rung, in any order and as many at a time as there is room for.

        Args:
            jobs: One a pack. They are made when they are asked for, so a worker that trains one pack at a time need
                not hold the states of all.

        Yields:
            What happens, as it happens or when a pack is over: `Stepped` (not needed), `EpochEnded`, `RunEnded`; and
            each pack's state when it is over or too large, before that whenever one is wanted.
        """
        ...


@final
class LocalWorker:
    """Trains packs in this process, one after another.

    Args:
        model: The base; the same, bit for bit, whenever a state is handed over.
        problem: Data, loss and metric.
        wanted: Asked after every step; where it returns True, the pack's state is handed over, and training continues.
    """

    def __init__(self, model: nn.Module, problem: Problem, wanted: Callable[[], bool] = lambda: False) -> None:
        self._model, self._problem, self._wanted = model, problem, wanted

    def train(self, jobs: Iterable[PackJob]) -> Generator[Event | PackState]:
        """Train packs in the order given."""
        for job in jobs:
            pack, until = job.pack, job.until
            # What glibc keeps of the plan's measurements and of earlier packs would lie beside this one's memory.
            give_back()
            training = pack_training(self._model, job.runs, self._problem)
            if job.state is not None:
                training.restore(job.state)
            del job  # only `training` should hold this memory
            looked, short, wanted = time.monotonic(), False, False
            while not training.done and not short and (until is None or training.epoch < until):
                try:
                    with closing(training.by_step()) as steps:
                        for epoch in steps:
                            if epoch is not None:
                                yield epoch.stepped
                                yield EpochEnded(tuple(epoch.points), tuple(training.notes))
                                yield from map(RunEnded, epoch.ended)
                            elif (now := time.monotonic()) - looked >= BETWEEN:
                                looked = now
                                yield training.read_steps()
                            if wanted := self._wanted():
                                break
                except (RuntimeError, MemoryError) as error:
                    if not ran_out(error):
                        raise
                    short = True
                else:
                    if wanted:
                        if (stepped := training.read_steps()).losses:
                            yield stepped
                        yield PackState(pack, "under way", None if training.done else training.state())
            state = None if training.done else training.state()
            del training
            give_back()
            if short and torch.cuda.is_available():
                # Outside the handler, where the error's frames hold the failed step's tensors no longer.
                torch.cuda.empty_cache()
            yield PackState(pack, "too large" if short else "over", state)


WorkerFactory = Callable[[nn.Module, Problem, Callable[[], bool]], Worker]
"""(base, problem, whether a state is wanted now) -> a worker. The base and the problem are those of the process that
runs the sweep; a worker elsewhere has loaded the same ones."""
