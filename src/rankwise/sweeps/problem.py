"""The problem of a sweep and its results: runs, data, loss and metric; outcomes and scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from rankwise.pack.batches import selected
from rankwise.pack.losses import PerBatch
from rankwise.pack.member import Member
from rankwise.pack.model.inspection import Inspections
from rankwise.pack.resolved import AdapterState
from rankwise.results.kinds import Method, Status
from rankwise.sweeps.choose.configurations import RunScore
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.train.data.cuts import Rotation
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import Data, count_rows
from rankwise.train.events import EpochEnded, Event, RunEnded
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.train.settings import Training

DEFAULT_DATA = "data"
"""The name of the splits where there is only one set."""


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Args:
        name: For example "r8-lr0.001-s0"; unique.
        configuration: Its configuration, whatever its learning rate and seed: "r8", "full".
        label: The configuration in words.
        method: "lora", "full" or "head".
        member: What it trains.
        training: Its training settings.
        data: Which of the problem's splits it trains on and is tested on.
        start: Tensors to start from; those left out start as the member's settings say.
    """

    name: str
    configuration: str
    label: str
    method: Method
    member: Member
    training: Training
    data: str = DEFAULT_DATA
    start: AdapterState = field(default_factory=dict[str, Tensor])

    @property
    def r(self) -> int | None:
        """The rank; None unless the method is "lora"."""
        return None if self.member.lora is None else self.member.lora.r


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data: tensors, or tuples or mappings of them, rows first.

    Args:
        train: To train on.
        validation: For every choice.
        test: Read once, at the end.
        rotation: How each seed can split training and validation rows; None where the validation data is fixed.
    """

    train: Data
    validation: Data
    test: Data
    rotation: Rotation | None = None


@dataclass(frozen=True)
class Problem:
    """The data, loss and metric of a sweep.

    Args:
        splits: Data by the names that runs give in `data`.
        loss: loss(outputs, batch) of one adapter.
        metric: metric(outputs, batch) of one adapter, one value a row; read after every epoch.
        other_tests: Further test sets on which the metric is taken, by the metric's name there.
        metric_name: What the metric that decides is called.
        higher_is_better: False for losses.
        feed: How data reach the model.
        constant: (training data, data) -> the metric of each row of the data for the best constant prediction, such as
            the majority class; None where there is no such thing.
        rotate: Whether each seed trains and validates on rows of its own where the splits have a rotation.
        model_metric: What decides in place of the metric, read off the model of each run that has ended; the metric is
            then the loss.
        loss_name: What the loss is called.
        loss_constant: As `constant`, for the loss.
        inspections: What has been found of the base, for all packs of the sweep.
    """

    splits: Mapping[str, Splits]
    loss: PerBatch
    metric: PerBatch
    other_tests: Mapping[str, Data] = field(default_factory=dict)
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    feed: Feed = field(default_factory=Feed)
    constant: Callable[[Data, Data], np.ndarray] | None = None
    rotate: bool = False
    model_metric: ModelMetric | None = None
    loss_name: str = "loss"
    loss_constant: Callable[[Data, Data], np.ndarray] | None = None
    inspections: Inspections = field(default_factory=Inspections, repr=False, compare=False)

    @property
    def by_loss(self) -> "Problem":
        """The problem judged by its loss."""
        return replace(
            self,
            metric=self.loss,
            metric_name=self.loss_name,
            higher_is_better=False,
            constant=self.loss_constant,
            model_metric=None,
        )

    @property
    def each_epoch(self) -> "Problem":
        """The problem as it is judged while runs train: by the loss, where the metric needs the model of a run that has
        ended."""
        return self if self.model_metric is None else self.by_loss

    def validation_of(self, run: Run) -> Data:
        """The validation data of a run."""
        splits, rotation = self.splits[run.data], self.rotation_of(run.data)
        if rotation is None:
            return splits.validation
        rows = rotation.cut(run.member.seed).validation
        return selected(rotation.pool, rows)

    def rotation_of(self, data: str) -> Rotation | None:
        """How each seed splits the rows; None where all seeds train and validate on the same rows."""
        return self.splits[data].rotation if self.rotate else None

    def data_of(self, data: str) -> tuple[Data, Data]:
        """Training and validation data as a training takes them: twice the pool where each seed cuts its own rows."""
        rotation, splits = self.rotation_of(data), self.splits[data]
        return (splits.train, splits.validation) if rotation is None else (rotation.pool, rotation.pool)

    def train_rows(self, data: str) -> int:
        """Rows that a run on these splits trains on."""
        rotation = self.rotation_of(data)
        return count_rows(self.splits[data].train, "training") if rotation is None else rotation.n_train

    def validation_rows(self, data: str) -> int:
        """Rows that a run on these splits validates on."""
        rotation = self.rotation_of(data)
        return count_rows(self.splits[data].validation, "validation") if rotation is None else rotation.n_validation

    def cut_rows(self, run: Run) -> np.ndarray | None:
        """The rows of the pool on which a run's metric is taken; None where all seeds validate on the same rows."""
        rotation = self.rotation_of(run.data)
        if rotation is None:
            return None
        rows = rotation.cut(run.member.seed).validation
        if self.model_metric is not None:
            rows = rows[self.model_metric.places(self.validation_of(run))]
        return rows.numpy()


@dataclass(frozen=True)
class Scores:
    """A finished run's metric, example by example, and its validation loss; no tests where they were not read.

    Args:
        validation: With the weights that are saved.
        validation_loss: Likewise.
        test: Likewise.
        other: On further test sets, by the metric's name there.
        deciding: The cross-fitted metric of each validation example, where there is one.
        rows: The rows of the pool that its validation examples are, where each seed has its own.
        losses: The loss of each validation example with the weights that are saved, where the metric is not the loss
            and the loss has a value for each row.
    """

    validation: np.ndarray
    validation_loss: float
    test: np.ndarray
    other: Mapping[str, np.ndarray]
    deciding: np.ndarray | None = None
    rows: np.ndarray | None = None
    losses: np.ndarray | None = None

    @property
    def decisive(self) -> np.ndarray:
        """The validation metric that decides: cross-fitted where possible.

        Where the saved weights have no finite metric, that metric decides, so the run does not count.
        """
        return self.validation if self.deciding is None or not np.isfinite(self.validation).all() else self.deciding


@dataclass
class SweepState:
    """The results of a sweep so far.

    Args:
        runs: All planned runs.
        parameters: Trainable parameters by run.
        outcomes: Outcome of each run that ended, by name.
        scores: Score of each finished run, by name.
        curve: A point for each run and epoch.
        packs: Number of the pack by run.
        memory: Bytes that the pack needs, base included, by run: as measured on single steps before training.
        complete: Whether every planned run has ended.
        notes: Notes for the user.
        seconds_before: Training time of an interrupted run that this one resumed.
        compressed: Trained adapters cut to smaller ranks, as runs; None where none was cut.
    """

    runs: Sequence[Run]
    parameters: Mapping[str, int]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    curve: list[EpochPoint] = field(default_factory=list)
    packs: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    notes: list[str] = field(default_factory=list)
    seconds_before: float = 0.0
    compressed: "SweepState | None" = None

    def on_event(self, event: Event) -> None:
        """Record the points of an epoch, or the end of a run."""
        if isinstance(event, EpochEnded):
            self.note(event.notes)
            self.curve.extend(event.points)
        elif isinstance(event, RunEnded):
            self.outcomes[event.outcome.name] = event.outcome

    def add(self, more: "SweepState") -> None:
        """Add the results of a further stage."""
        first = max(self.packs.values(), default=-1) + 1
        self.runs = [*self.runs, *more.runs]
        self.parameters = {**self.parameters, **more.parameters}
        self.outcomes |= more.outcomes
        self.scores |= more.scores
        self.curve += more.curve
        self.memory |= more.memory
        self.packs |= {name: first + pack for name, pack in more.packs.items()}
        self.complete = self.complete and more.complete
        self.seconds_before += more.seconds_before
        self.note(more.notes)

    def select(self, names: Sequence[str]) -> "SweepState":
        """The results of these runs, in this order."""
        by_name = {run.name: run for run in self.runs}
        chosen = {*names}
        return SweepState(
            [by_name[name] for name in names],
            {name: self.parameters[name] for name in names},
            outcomes={name: self.outcomes[name] for name in names if name in self.outcomes},
            scores={name: self.scores[name] for name in names if name in self.scores},
            curve=[point for point in self.curve if point.run in chosen],
            packs={name: self.packs[name] for name in names if name in self.packs},
            memory={name: self.memory[name] for name in names if name in self.memory},
            complete=self.complete,
        )

    def note(self, notes: Sequence[str]) -> None:
        """Add notes for the user, each once."""
        self.notes.extend(note for note in dict.fromkeys(notes) if note not in self.notes)

    def score(self, run: Run) -> RunScore:
        """A run, as the rule of the answer uses it."""
        outcome, scores = self.outcomes.get(run.name), self.scores.get(run.name)
        validation, rows = (np.empty(0), None) if scores is None else (scores.decisive, scores.rows)
        status = "stopped" if outcome is None else outcome.status
        return score_of(run, self.parameters[run.name], validation, status, rows)


def score_of(
    run: Run, parameters: int, validation: np.ndarray, status: Status, rows: np.ndarray | None = None
) -> RunScore:
    """A run with the metric of each validation example, as the rules of choosing take it."""
    return RunScore(
        name=run.name,
        method=run.method,
        r=run.r,
        lr=run.training.lr,
        seed=run.member.seed,
        trainable_parameters=parameters,
        validation=validation,
        configuration=run.configuration,
        status=status,
        rows=rows,
    )
