"""The stages of a sweep as data: what is planned, what was searched, its outcome."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rankwise.sweeps.problem import Run, SweepState


@dataclass(frozen=True, kw_only=True)
class Search:
    """Learning rates are looked for on less data and fewer seeds before the runs that count.

    The schedule is that of the runs that count, as far as the search comes: its own short schedule would find
    rates that are too high for them.

    Args:
        data: The problem's splits that are used for it.
        seeds: Its seeds.
        rungs: Epochs after which the worse half of the learning rates leaves.
    """

    data: str
    seeds: tuple[int, ...] = (0,)
    rungs: tuple[int, ...] = ()


BestBefore = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Phase:
    """Runs that are trained and measured before anything further is decided.

    Args:
        runs: What trains.
        rungs: Epochs after which the worst configurations leave.
        tests: Whether finished runs are measured on test data too.
        best_before: Configuration -> step -> the best metric that earlier runs of it had there. At a rung runs leave
            that are behind it, in place of the worst among themselves.
    """

    runs: Sequence[Run]
    rungs: Sequence[int] = ()
    tests: bool = True
    best_before: BestBefore | None = None


T = TypeVar("T")
Phases = Generator[Phase, SweepState, T]
"""Decides: yields the next phase, is sent its outcome, and returns a result."""


class Decisions(Generic[T]):
    """Phases in a loop, for whoever trains them: iterate, and hand back the outcome of each.

    Args:
        phases: What decides.
    """

    result: T
    """Once there is nothing more to train."""

    def __init__(self, phases: Phases[T]) -> None:
        self._phases = phases
        self._came: SweepState | None = None

    def __iter__(self) -> Iterator[Phase]:
        while True:
            try:
                phase = next(self._phases) if self._came is None else self._phases.send(self._came)
            except StopIteration as end:
                self.result = end.value
                return
            yield phase

    def take(self, came: SweepState) -> None:
        """Pass on the outcome of the last phase."""
        self._came = came


@dataclass(frozen=True)
class PlannedStage:
    """A stage as it is known beforehand.

    Args:
        title: What it is for.
        runs: What it trains.
        rungs: Epochs after which the worst configurations leave.
        tests: Whether finished runs are measured on test data too.
    """

    title: str
    runs: Sequence[Run]
    rungs: Sequence[int]
    tests: bool = True


@dataclass(frozen=True)
class Finished:
    """The finished part of an earlier sweep, for a longer one to continue from.

    Args:
        swept: Its runs; the states of their adapters lie in its run directory.
        fingerprints: SHA-256 of each run's settings, by the run's name.
        rates: Configuration -> the learning rate that a search chose, and whether it lies at the edge of its grid.
        searched: What the search tried, for `results.json`.
        price: What a further adapter in a pack cost; None where it was not measured.
    """

    swept: SweepState
    fingerprints: Mapping[str, str]
    rates: Mapping[str, tuple[float, bool]]
    searched: Sequence[dict[str, Any]] = ()
    price: float | None = None


@dataclass
class StageResult:
    """The result of the stages.

    Args:
        swept: The runs that count, of all stages together.
        edges: Configuration -> whether the search chose a learning rate at the edge of its grid.
        searched: What the search tried, for `results.json`.
        path: Configurations that the adaptive plan decided on its way; None where all were trained alike.
        reference: What the adaptive plan held them against; None where that follows from the results.
        rates: The learning rate that the adaptive plan settled on, by configuration.
        search_rates: Configuration -> the learning rate that the search chose, and whether it lies at the edge.
        price: What a further adapter in a pack cost; None where it was not measured.
    """

    swept: SweepState
    edges: dict[str, bool] = field(default_factory=dict[str, bool])
    searched: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    path: tuple[str, ...] | None = None
    reference: str | None = None
    rates: dict[str, float] | None = None
    search_rates: dict[str, tuple[float, bool]] = field(default_factory=dict[str, tuple[float, bool]])
    price: float | None = None
