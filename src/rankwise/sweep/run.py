"""Run a sweep: packs of runs over one base, then one evaluation of everything that finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from rankwise.pack.losses import PerAdapter, PerBatch
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import resolve
from rankwise.sweep.configurations import RunScore
from rankwise.sweep.watch import Watch
from rankwise.train.data import Data, count_rows, pick
from rankwise.train.evaluation import evaluate_rows
from rankwise.train.live import Progress
from rankwise.train.loop import train_pack
from rankwise.train.outcome import Outcome, Point
from rankwise.train.settings import Training


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Args:
        name: For example "r8-lr0.001-s0"; unique.
        configuration: What it is a repeat of, whatever its learning rate and seed: "r8", "full".
        label: The configuration in words.
        method: "lora", "full" or "head".
        member: What it trains.
        training: How.
        data: Which of the problem's splits it trains on and is tested on.
    """

    name: str
    configuration: str
    label: str
    method: str
    member: Member
    training: Training
    data: str = "new"

    @property
    def r(self) -> int | None:
        """The rank; None unless the method is "lora"."""
        return None if self.member.lora is None else self.member.lora.r


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data: tensors, or tuples or mappings of them, rows first."""

    train: Data
    validation: Data
    test: Data


@dataclass(frozen=True)
class Problem:
    """What is to be learned.

    Args:
        splits: Data by the names that runs give in `data`.
        loss: loss(outputs, batch) of one adapter.
        metric: metric(outputs, batch) of one adapter, one value a row.
        other_tests: Further test sets on which the metric is taken, by the metric's name there.
        metric_name: What the metric is called.
        higher_is_better: False for losses.
    """

    splits: Mapping[str, Splits]
    loss: PerBatch
    metric: PerBatch
    other_tests: Mapping[str, Data] = field(default_factory=dict)
    metric_name: str = "accuracy"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Scores:
    """A finished run's metric, example by example, and its validation loss."""

    validation: np.ndarray
    validation_loss: float
    test: np.ndarray
    other: Mapping[str, np.ndarray]


@dataclass
class Swept:
    """What a sweep has found.

    Args:
        runs: All planned runs.
        parameters: Trainable parameters by run.
        outcomes: How each run that ended did, by name.
        scores: Of each finished run, by name.
        curve: A point for each run and epoch.
        packs: Number of the pack by run.
        complete: Whether every planned run has ended.
        notes: What the user should know of how it ran.
    """

    runs: Sequence[Run]
    parameters: Mapping[str, int]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    packs: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    notes: list[str] = field(default_factory=list)

    def score(self, run: Run) -> RunScore:
        """What the rule of the answer needs to know of a run."""
        outcome, scores = self.outcomes.get(run.name), self.scores.get(run.name)
        return RunScore(
            name=run.name,
            method=run.method,
            r=run.r,
            lr=run.training.lr,
            seed=run.member.seed,
            trainable_parameters=self.parameters[run.name],
            validation=np.empty(0) if scores is None else scores.validation,
            configuration=run.configuration,
            status="stopped" if outcome is None else outcome.status,
        )


def plan_packs(runs: Sequence[Run]) -> list[list[Run]]:
    """Cut runs into packs: runs share one when they read the same data in batches of one size, and all are low-rank
    or all train whole layers (whose products have nothing in common)."""
    packs: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        packs.setdefault((run.data, run.training.batch_size, run.method), []).append(run)
    return list(packs.values())


def run_sweep(model: nn.Module, runs: Sequence[Run], problem: Problem, progress: Progress) -> Swept:
    """Train every run and measure those that finished.

    An interrupt (Ctrl-C) while training ends the training only: what had finished is measured and returned, with
    `complete` false.

    Args:
        model: The base; its weights are the same, bit for bit, afterwards.
        runs: What to train.
        problem: Data, loss and metric.
        progress: Where it is shown.

    Raises:
        PackError: Some runs can't be trained in a pack.
        TargetError: A target pattern matches nothing.
    """
    parameters = {run.name: resolve(model, run.member).parameter_count() for run in runs}
    swept = Swept(runs, parameters)
    packs = plan_packs(runs)
    swept.packs = {run.name: i for i, pack in enumerate(packs) for run in pack}
    watch = Watch(
        progress,
        {run.name: (run.configuration, run.r, run.training.lr) for run in runs},
        {run.name: run.training.epochs * -(-_rows(problem, run) // run.training.batch_size) for run in runs},
        problem.metric_name,
    )
    try:
        for pack in packs:
            data = problem.splits[pack[0].data]

            def note(points: list[Point]) -> None:
                swept.curve.extend(points)
                watch.points(points)

            members = [(run.member, run.training) for run in pack]
            for outcome in train_pack(
                model, members, data.train, data.validation, problem.loss, problem.metric, on_epoch=note
            ):
                swept.outcomes[outcome.name] = outcome
                watch.ended(outcome)
        swept.complete = True
    except KeyboardInterrupt:
        pass
    for pack in packs:
        _measure(model, [run for run in pack if run.name in swept.outcomes], problem, swept)
    return swept


def _rows(problem: Problem, run: Run) -> int:
    return count_rows(problem.splits[run.data].train, "training")


def _measure(model: nn.Module, runs: Sequence[Run], problem: Problem, swept: Swept) -> None:
    """Take the scores of a pack's finished runs, test data included."""
    finished = [run for run in runs if swept.outcomes[run.name].status == "finished"]
    if not finished:
        return
    states = {run.name: swept.outcomes[run.name].state for run in finished}
    pack = Pack(model, [run.member for run in finished], problem.loss, states=states)
    loss, metric = PerAdapter(problem.loss, "loss"), PerAdapter(problem.metric, "metric")
    data = problem.splits[finished[0].data]
    with pack.attached(pick(data.validation, lambda t: t[:2]), training=False):
        losses, validation = evaluate_rows(pack, data.validation, [loss, metric])
        (test,) = evaluate_rows(pack, data.test, [metric])
        other = {name: evaluate_rows(pack, rows, [metric])[0] for name, rows in problem.other_tests.items()}
    swept.notes.extend(note for note in [*loss.notes, *metric.notes] if note not in swept.notes)
    for k, member in enumerate(pack.members):
        swept.scores[member.member.name] = Scores(
            validation[k].cpu().numpy(),
            float(losses[k].mean()),
            test[k].cpu().numpy(),
            {name: values[k].cpu().numpy() for name, values in other.items()},
        )


@torch.no_grad()
def measure_base(model: nn.Module, problem: Problem, data: Data) -> float:
    """The metric of the model as it is."""
    was_training = model.training
    outputs = model.eval()(data[0])
    model.train(was_training)
    return float(problem.metric(outputs, data).mean())
