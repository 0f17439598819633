"""What a sweep would do, before it does it: its packs, their memory, and their time from a few probing steps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankwise.sweeps.fitting import training_of
from rankwise.sweeps.plan import make_plan
from rankwise.sweeps.problem import Run
from rankwise.sweeps.stages import Stages


@dataclass(frozen=True)
class PackForecast:
    """One pack of a sweep that has not begun.

    Args:
        stage: What the pack is trained for.
        runs: Names of its runs.
        configurations: Configuration -> how many of the runs are of it.
        epochs: Passes over the training data, at the most.
        bytes: Memory beside the base.
        seconds: Training and validation, were every run to stay to its end.
    """

    stage: str
    runs: tuple[str, ...]
    configurations: Mapping[str, int]
    epochs: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """A sweep that has not begun.

    Args:
        packs: In the order in which they train.
        base_bytes: Memory of the base.
        limit: Bytes that a pack may need beside the base; None where there is no limit.
        open: What is not in the figures, in words.
    """

    packs: tuple[PackForecast, ...]
    base_bytes: int
    limit: int | None
    open: tuple[str, ...]

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return sum(len(pack.runs) for pack in self.packs)

    @property
    def peak_bytes(self) -> int:
        """Memory at the most: the base and the largest pack."""
        return self.base_bytes + max(pack.bytes for pack in self.packs)

    @property
    def seconds(self) -> float:
        """Time of all packs."""
        return sum(pack.seconds for pack in self.packs)

    def plain(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        totals = {"total_runs": self.runs, "peak_bytes": self.peak_bytes, "seconds": self.seconds}
        return {**asdict(self), **totals}


def foresee(stages: Stages) -> Forecast:
    """Plan a sweep and time a few steps of each of its packs; nothing is written and the base stays as it is.

    Raises:
        ConfigError: The grid is empty.
        PackError: Some runs can't be trained in a pack.
        TargetError: A target pattern matches nothing.
    """
    packs: list[PackForecast] = []
    base, limit = 0, None
    for stage in stages.expected():
        plan = make_plan(stages.model, stage.runs, stages.problem, stage.rungs)
        base, limit = plan.base_bytes, plan.limit
        by_name = {run.name: run for run in stage.runs}
        for names in plan.packs:
            runs = [by_name[name] for name in names]
            epochs = max(run.training.epochs for run in runs)
            packs.append(
                PackForecast(
                    stage=stage.title,
                    runs=tuple(names),
                    configurations=_counted(runs),
                    epochs=epochs,
                    bytes=sum(plan.memory[name] for name in names),
                    seconds=epochs * training_of(stages.model, runs, stages.problem).seconds_an_epoch(),
                )
            )
    return Forecast(tuple(packs), base, limit, tuple(_open(stages)))


def _counted(runs: Sequence[Run]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.configuration] = counts.get(run.configuration, 0) + 1
    return counts


def _open(stages: Stages) -> list[str]:
    words = ["Loading, and the measurement of finished runs on test data, come on top."]
    if stages.rungs or (stages.search is not None and stages.search.rungs):
        words.append("It takes less where runs leave at a rung.")
    if any(candidate.training.patience is not None for candidate in stages.candidates):
        words.append("It takes less where runs stop early.")
    if stages.widen and any(len(candidate.lrs) > 1 for candidate in stages.candidates):
        words.append("Further learning rates, tried where the best one lies at the edge, are not counted.")
    return words
