"""Forecast a sweep: its packs, their memory, and their time from a few probing steps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import nn

from rankwise.pack.resolved import resolve
from rankwise.sweeps.choose.answer import CANDIDATES
from rankwise.sweeps.plan.fitting import kind_of, pack_training, state_bytes
from rankwise.sweeps.plan.plan import make_plan
from rankwise.sweeps.plan.probing import Probe, probe
from rankwise.sweeps.problem import Problem, Run
from rankwise.sweeps.run.stages import Stages
from rankwise.train.data.tensors import count_rows
from rankwise.train.machine.memory import KERNELS_KEPT, kernel_bytes, program_bytes

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
        bytes: Memory of its tensors on top of the base.
        peak_bytes: Memory in use while it trains: of the whole process, or of the GPU.
        disk_bytes: Disk that a checkpoint of the pack takes while it trains.
        ended_bytes: Disk of what its runs have trained, once they have ended.
        adapter_bytes: Disk of its runs' adapters.
        seconds: Training, validation and test data, were every run to stay to its end.
    """

    stage: str
    runs: tuple[str, ...]
    configurations: Mapping[str, int]
    epochs: int
    bytes: int
    peak_bytes: int
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
        planning: Seconds in which the plan measures memory, which the sweep pays too.
        open: What is not in the figures, in words.
        at_once: Packs that train at the same time, each in a process with one thread where there are several.
    """

    packs: tuple[PackForecast, ...]
    base_bytes: int
    program_bytes: int
    limit: int | None
    planning: float
    open: tuple[str, ...]
    at_once: int = 1

    @property
    def runs(self) -> int:
        """The number of runs."""
        return sum(len(pack.runs) for pack in self.packs)

    @property
    def peak_bytes(self) -> int:
        """Memory at most: that of the largest pack with all that ended before it, and the tensors of the largest packs
        that may train at the same time."""
        largest = max(self.packs, key=lambda pack: pack.peak_bytes)
        beside = sorted((pack.bytes for pack in self.packs if pack is not largest), reverse=True)
        return largest.peak_bytes + sum(beside[: self.at_once - 1])

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
        """Time of the plan and of all packs, where each is begun when a process is free."""
        total = self.planning
        for _, packs in groupby(self.packs, key=lambda pack: pack.stage):
            ends = [0.0] * self.at_once
            for pack in packs:
                ends[ends.index(min(ends))] += pack.seconds
            total += max(ends)
        return total

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


def forecast_sweep(stages: Stages, processes: int = 1) -> Forecast:
    """Plan a sweep and take a few steps of each of its packs; nothing is written and the base stays as it is.

    Args:
        stages: The sweep.
        processes: Those that train its packs, each with one thread where there are several.

    Raises:
        ConfigError: The grid is empty.
        PackError: Some runs can't be trained in a pack.
        TargetError: A target pattern matches nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if processes > 1 else threads)
    try:
        return _forecast(stages, processes)
    finally:
        torch.set_num_threads(threads)


def _forecast(stages: Stages, at_once: int) -> Forecast:
    packs: list[PackForecast] = []
    model, problem, limit = stages.model, stages.problem, None
    device = next(model.parameters()).device
    base = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    program = program_bytes(device, base)
    costs = _Costs(model, problem, device)
    ended = 0
    kernels: dict[tuple[object, ...], int] = {(): kernel_bytes()}
    for stage in stages.expected():
        plan = make_plan(
            model,
            stage.runs,
            problem,
            stage.rungs,
            probes=stages.probes,
            at_once=at_once,
            in_one_memory=at_once,
            measure=costs.bytes,
        )
        limit = plan.limit
        by_name = {run.name: run for run in stage.runs}
        for names in plan.packs:
            runs = [by_name[name] for name in names]
            epochs, steps = max(run.training.epochs for run in runs), costs.steps(runs[0])
            cost, validated = costs.of(runs), problem.validation_rows(runs[0].data)
            kernels[_kind(model, runs)] = cost.kernels_made
            missing = max(0, min(KERNELS_KEPT, sum(kernels.values())) - cost.kernels)
            measured = validated + (_rows_measured(problem, runs[0].data) if stage.tests else 0)
            numbers = {run.name: resolve(model, run.member).parameter_count() for run in runs}
            of_adapters = sum(numbers[run.name] for run in runs if run.method in CANDIDATES)
            needed = cost.bytes + state_bytes(model) * sum(numbers.values())
            saved = SAVED * sum(numbers.values())
            packs.append(
                PackForecast(
                    stage=stage.title,
                    runs=tuple(names),
                    configurations=_counted(runs),
                    epochs=epochs,
                    bytes=needed,
                    # What ended before is in memory until it is measured, and is written as one copy more.
                    peak_bytes=(cost.peak or program + base + needed) + missing + ended + saved,
                    disk_bytes=state_bytes(model) * sum(numbers.values()),
                    ended_bytes=saved,
                    adapter_bytes=SAVED * of_adapters,
                    seconds=cost.setup + epochs * (steps * cost.step + validated * cost.row) + measured * cost.row,
                )
            )
            ended += saved
    return Forecast(tuple(packs), base, program, limit, costs.planning, tuple(_open(stages)), at_once)


class _Costs:
    """Packs that are measured once for each kind, also while the plan is made."""

    def __init__(self, model: nn.Module, problem: Problem, device: torch.device) -> None:
        self._model, self._problem, self._device = model, problem, device
        self._found: dict[tuple[object, ...], Probe] = {}
        self.planning = 0.0
        """Seconds in which the plan of a sweep measures memory."""

    def steps(self, run: Run) -> int:
        """Steps of an epoch."""
        return -(-self._problem.train_rows(run.data) // run.training.batch_size)

    def of(self, runs: Sequence[Run]) -> Probe:
        """The cost of a pack. Those of one kind, such as runs of full fine-tuning in turn, have the same."""
        kind = _kind(self._model, runs)
        if kind not in self._found:
            steps = max(run.training.epochs for run in runs) * self.steps(runs[0])
            self._found[kind] = probe(partial(pack_training, self._model, runs, self._problem), self._device, steps)
        return self._found[kind]

    def bytes(self, run: Run, of_kind: int) -> int:
        """The bytes of a run's step, as the plan asks for them: what will probably be a pack is measured as one."""
        clock = time.perf_counter()
        if of_kind > 1 and run.method == "lora":
            needed = pack_training(self._model, [run], self._problem).peak_bytes()
            self.planning += time.perf_counter() - clock
            return needed
        cost = self.of([run])
        self.planning += cost.setup + cost.counting
        return cost.bytes


def _rows_measured(problem: Problem, data: str) -> int:
    """Rows of test data that each run is measured on once it has ended."""
    if problem.model_metric is not None:
        return 0  # it writes texts: no row of a pack's evaluation tells how long that takes
    return sum(count_rows(one, "test") for one in (problem.splits[data].test, *problem.other_tests.values()))


def _kind(model: nn.Module, runs: Sequence[Run]) -> tuple[object, ...]:
    """The key that a pack's time and memory depend on."""
    own = sorted((str(kind_of(model, run)), resolve(model, run.member).parameter_count()) for run in runs)
    return len({run.member.seed for run in runs}), *own


def _counted(runs: Sequence[Run]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.configuration] = counts.get(run.configuration, 0) + 1
    return counts


def _open(stages: Stages) -> list[str]:
    words = ["Loading and the report come on top."]
    if stages.problem.model_metric is not None:
        words = [f"Loading, the report, and measuring {stages.problem.metric_name} come on top."]
    if stages.rungs or (stages.search is not None and stages.search.rungs):
        words.append("It takes less where runs leave at a rung.")
    if any(candidate.training.patience is not None for candidate in stages.candidates):
        words.append("It takes less where runs stop early.")
    if stages.widen and any(len(candidate.lrs) > 1 for candidate in stages.candidates):
        words.append("Further learning rates, tried where the best one lies at the edge, are not counted.")
    return words
