"""Forecast a sweep: its packs, their memory, and their time from a few probing steps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from rankwise.pack.resolved import resolve
from rankwise.sweeps.plan.fitting import Probes, kind_of, pack_training, state_bytes
from rankwise.sweeps.plan.plan import make_plan
from rankwise.sweeps.problem import Problem, Run
from rankwise.sweeps.run.stages import Stages
from rankwise.train.loop import PROBED
from rankwise.train.machine.memory import program_bytes

FEW_STEPS = 100
"""Trainings with fewer steps are timed by one step: probing must stay short compared with them."""

SAVED = 4
"""Bytes of a trained number on disk: float32, also over a base in half precision."""


@dataclass(frozen=True)
class PackForecast:
    """One pack of a sweep that has not begun.

    Args:
        stage: What the pack is trained for.
        runs: Names of its runs.
        configurations: Configuration -> how many of the runs are of it.
        epochs: Passes over the training data, at most.
        bytes: Memory on top of the base.
        disk_bytes: Disk that a checkpoint of the pack takes while it trains.
        ended_bytes: Disk of what its runs have trained, once they have ended.
        adapter_bytes: Disk of its runs' adapters.
        seconds: Training and validation, were every run to stay to its end.
    """

    stage: str
    runs: tuple[str, ...]
    configurations: Mapping[str, int]
    epochs: int
    bytes: int
    disk_bytes: int
    ended_bytes: int
    adapter_bytes: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """A sweep that has not begun.

    Args:
        packs: In the order in which they train.
        base_bytes: Memory of the base.
        program_bytes: Memory of the program, without base and packs.
        limit: Bytes that a pack may need on top of the base; None where there is no limit.
        open: What is not in the figures, in words.
    """

    packs: tuple[PackForecast, ...]
    base_bytes: int
    program_bytes: int
    limit: int | None
    open: tuple[str, ...]

    @property
    def runs(self) -> int:
        """The number of runs."""
        return sum(len(pack.runs) for pack in self.packs)

    @property
    def peak_bytes(self) -> int:
        """Memory at most: the program, the base and the largest pack."""
        return self.program_bytes + self.base_bytes + max(pack.bytes for pack in self.packs)

    @property
    def disk_bytes(self) -> int:
        """Disk at most, while the sweep trains: two checkpoints of the largest pack and of all ended runs, and the
        adapters."""
        return (
            2 * max(pack.disk_bytes for pack in self.packs)
            + 2 * sum(p.ended_bytes for p in self.packs)
            + self.adapter_bytes
        )

    @property
    def adapter_bytes(self) -> int:
        """Disk of all adapters, which stay."""
        return sum(pack.adapter_bytes for pack in self.packs)

    @property
    def seconds(self) -> float:
        """Time of all packs."""
        return sum(pack.seconds for pack in self.packs)

    def plain(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        totals = {
            "total_runs": self.runs,
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "adapter_bytes": self.adapter_bytes,
            "seconds": self.seconds,
        }
        return {**asdict(self), **totals}


def forecast_sweep(stages: Stages) -> Forecast:
    """Plan a sweep and time a few steps of each of its packs; nothing is written and the base stays as it is.

    Raises:
        ConfigError: The grid is empty.
        PackError: Some runs can't be trained in a pack.
        TargetError: A target pattern matches nothing.
    """
    packs: list[PackForecast] = []
    base, limit = sum(t.numel() * t.element_size() for t in (*stages.model.parameters(), *stages.model.buffers())), None
    program = program_bytes(next(stages.model.parameters()).device, base)
    times: dict[tuple[object, ...], float] = {}
    for stage in stages.expected():
        plan = make_plan(stages.model, stage.runs, stages.problem, stage.rungs, probes=stages.probes)
        limit = plan.limit
        by_name = {run.name: run for run in stage.runs}
        for names in plan.packs:
            runs = [by_name[name] for name in names]
            epochs = max(run.training.epochs for run in runs)
            # Packs of one kind, such as runs of full fine-tuning in turn, take the same.
            kind = _kind(stages.model, runs)
            if kind not in times:
                times[kind] = _seconds(stages, runs, epochs)
            numbers = {run.name: resolve(stages.model, run.member).parameter_count() for run in runs}
            of_adapters = sum(numbers[run.name] for run in runs if run.method == "lora")
            packs.append(
                PackForecast(
                    stage=stage.title,
                    runs=tuple(names),
                    configurations=_counted(runs),
                    epochs=epochs,
                    bytes=_bytes(stages.model, runs, stages.problem, stages.probes),
                    disk_bytes=state_bytes(stages.model) * sum(numbers.values()),
                    ended_bytes=SAVED * sum(numbers.values()),
                    adapter_bytes=SAVED * of_adapters,
                    seconds=epochs * times[kind],
                )
            )
    return Forecast(tuple(packs), base, program, limit, tuple(_open(stages)))


def _kind(model: nn.Module, runs: Sequence[Run]) -> tuple[object, ...]:
    """The key that a pack's time and memory depend on."""
    own = sorted((str(kind_of(model, run)), resolve(model, run.member).parameter_count()) for run in runs)
    return "pack", len({run.member.seed for run in runs}), *own


def _seconds(stages: Stages, runs: Sequence[Run], epochs: int) -> float:
    """The seconds of an epoch of a pack."""
    training = pack_training(stages.model, runs, stages.problem)
    return training.seconds_an_epoch(PROBED if epochs * training.steps_an_epoch >= FEW_STEPS else (0.5,))


def _bytes(model: nn.Module, runs: Sequence[Run], problem: Problem, probes: Probes) -> int:
    """Bytes of a pack on top of the base: its measured step, and the tensors stored for its parameters."""
    kind = _kind(model, runs)
    if len(runs) == 1:
        # As the plan has measured it.
        kind = *kind_of(model, runs[0]), resolve(model, runs[0].member).parameter_count()
    if kind not in probes:
        probes[kind] = pack_training(model, runs, problem).peak_bytes()
    return probes[kind] + state_bytes(model) * sum(resolve(model, run.member).parameter_count() for run in runs)


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
