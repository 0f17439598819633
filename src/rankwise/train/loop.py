"""The training of a pack: epochs, validation, schedules, stopping, keeping the best weights.

Everything that differs between adapters is a vector with an entry for each; adapters that are done leave the pack.
`PackTraining` holds all of it, can stop after any step, give its state and go on from it; `train_pack` runs it to
its end.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import CheckpointError, ConfigError
from rankwise.pack.losses import PerAdapter, PerBatch
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import State
from rankwise.train.data import Data, count_rows, pick, take
from rankwise.train.evaluation import evaluate
from rankwise.train.feed import EXAMPLE_ROWS, Feed
from rankwise.train.memory import peak_bytes
from rankwise.train.outcome import Outcome, Point
from rankwise.train.schedules import Schedules
from rankwise.train.settings import Training
from rankwise.train.stopping import Stopping

FIRST_STEPS = 25
"""Steps in a row whose gradients may overflow in float16 until loss scaling has found its factor."""

PROBED = (1 / 6, 1 / 2, 5 / 6)
"""Steps that tell how long one takes: where they lie among all, from the smallest rows to the largest."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave: a point for each adapter that took part, and the runs that ended with it."""

    points: list[Point]
    ended: list[Outcome]


@dataclass(frozen=True)
class TrainingState:
    """A pack in training as tensors by name and a plain part that JSON can hold; nothing of the base is in it."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The runs that are still in training."""
        return self.plain["names"]

    def states(self, kind: str) -> dict[str, State]:
        """Tensors by run: "now", those with the lowest validation loss ("best"), or the optimiser's "moments"."""
        found: dict[str, State] = {name: {} for name in self.names}
        for path, value in self.tensors.items():
            if path.startswith(f"{kind}/"):
                _, k, key = path.split("/", 2)
                found[self.names[int(k)]][key] = value
        return found

    def kept(self, weights: Mapping[str, str]) -> dict[str, State]:
        """The tensors that each run would hand out if it ended now, given which of "best" and "last" it keeps."""
        best, now = self.states("best"), self.states("now")
        return {name: (best if weights[name] == "best" else now)[name] for name in self.names}

    def only(self, names: Sequence[str]) -> "TrainingState":
        """The same of some of the runs."""
        places = [self.names.index(name) for name in names]
        tensors: dict[str, Tensor] = {}
        for path, value in self.tensors.items():
            kind, _, rest = path.partition("/")
            if kind == "vector":
                tensors[path] = value[places]
                continue
            k, _, key = rest.partition("/")
            if int(k) in places:
                tensors[f"{kind}/{places.index(int(k))}/{key}"] = value
        return TrainingState(tensors, {**self.plain, "names": list(names)})

    def vectors(self, of: str) -> dict[str, Tensor]:
        """Vectors with an entry for each run, in the order of `names`."""
        start = f"vector/{of}."
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}


class PackTraining:
    """A pack in training.

    Args:
        model: The base; the same, bit for bit, whenever no method is running.
        runs: What to train and how; all with one batch size.
        train: Training data, tensors with the rows first, on the model's device.
        validation: Data on which loss and metric are taken after every epoch.
        loss: loss(outputs, batch) of one adapter.
        metric: metric(outputs, batch) of one adapter.
        states: Tensors to start from, by member name; others start from their initialisation.
        feed: How data reach the model.

    Raises:
        ConfigError: The runs have different batch sizes.
        DataError: A data set is empty or its tensors differ in length.
        PackError: These runs can't share a pack.
    """

    def __init__(
        self,
        model: nn.Module,
        runs: Sequence[tuple[Member, Training]],
        train: Data,
        validation: Data,
        loss: PerBatch,
        metric: PerBatch,
        *,
        states: Mapping[str, State] | None = None,
        feed: Feed | None = None,
    ) -> None:
        self._feed = feed or Feed()
        sizes = {training.batch_size for _, training in runs}
        if len(sizes) != 1:
            raise ConfigError(f"Runs with batch sizes {sorted(sizes)} can't share a pack; make one pack for each.")
        self._batch_size = sizes.pop()
        self._train, self._validation = train, validation
        self._n = count_rows(train, "training")
        count_rows(validation, "validation")
        self.steps_an_epoch = -(-self._n // self._batch_size)
        self._started = time.perf_counter()
        self._pack = pack = Pack(model, [member for member, _ in runs], loss, states=states, call=self._feed.call)
        self._functions = [PerAdapter(loss, "loss", piece=self._batch_size), PerAdapter(metric, "metric")]
        pack.step_rows = self._feed.rows_a_pass or self._batch_size
        by_name = {member.name: training for member, training in runs}
        names = [member.member.name for member in pack.members]
        trainings = [by_name[name] for name in names]
        self._stopping = Stopping(names, trainings, pack.device, pack.dtype)
        self._schedules = Schedules(
            [t.schedule for t in trainings],
            [t.warmup for t in trainings],
            [t.horizon or t.epochs * self.steps_an_epoch for t in trainings],
        )
        self._best = pack.rows()
        self._total = torch.zeros(len(pack), device=pack.device)
        self._example = self._feed.example(self._feed.prepare(pick(train, lambda t: t[:EXAMPLE_ROWS])))
        self.epoch = 0
        """Epochs that are over."""
        self.done = False
        """Whether every run has ended."""

    @property
    def names(self) -> list[str]:
        """The runs that are still in training."""
        return [] if self.done else list(self._stopping.names)

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the pack runs."""
        return self._pack.notes

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._pack.steps

    def advance(self, pause: Callable[[], bool] = lambda: False) -> Epoch | None:
        """Train to the end of the epoch, evaluate, and let those leave that are done.

        Args:
            pause: Asked after each step but the epoch's last; where it says True, training stops there, and the next
                call goes on as if nothing had been.

        Returns:
            What the epoch gave; None where it was stopped within.
        """
        pack, of = self._pack, self._stopping
        weight_decay = of.weight_decay if of.weight_decay.any() else None
        clip = of.clip if of.clip.isfinite().any() else None
        order = self._feed.order(self._train, pack.seeds, self.epoch, self._batch_size).to(pack.device)
        rates = self._rates()
        with pack.attached(self._example, training=True):
            while (within := pack.steps - self.epoch * self.steps_an_epoch) < self.steps_an_epoch:
                rows = order[:, within * self._batch_size : (within + 1) * self._batch_size]
                if self._schedules.moves_each_step(pack.steps):
                    rates = self._rates()
                batch = self._feed.prepare(take(self._train, rows))
                losses = pack.step(batch, rates, weight_decay, clip, self._feed.rows_a_pass)
                self._total += losses * rows.shape[1]
                if within + 1 < self.steps_an_epoch and pause():
                    return None
        norms = pack.gradient_norms()
        with pack.attached(self._example, training=False):
            validation_loss, validation_metric = evaluate(pack, self._validation, self._functions, self._feed)
        train_loss = self._total / self._n
        finite = train_loss.isfinite() & validation_loss.isfinite() & ~pack.stuck(max(self.steps_an_epoch, FIRST_STEPS))
        pack.copy_rows(self._best, of.observe(validation_loss.where(finite, torch.nan), pack.steps))
        self._schedules.observe(validation_loss.double().cpu())
        columns = [c.tolist() for c in (train_loss, validation_loss, validation_metric, rates, norms)]
        points = [Point(name, pack.steps, *numbers) for name, *numbers in zip(of.names, *columns, strict=True)]
        self.epoch += 1
        self._total = torch.zeros_like(self._total)
        return Epoch(points, self._leave(of.ended(finite.tolist(), self.epoch)))

    def peak_bytes(self) -> int:
        """The memory that the gradients of the largest step take beyond the base's and the pack's own, measured by
        computing them; nothing is trained."""
        with self._pack.attached(self._example, training=True):
            batch = self._feed.prepare(take(self._train, self._rows_at(1.0)))
            return peak_bytes(lambda: self._pack.gradients(batch, self._feed.rows_a_pass), self._pack.device)

    def seconds_an_epoch(self) -> float:
        """How long an epoch takes, validation included, measured on a few of its steps and rows, of all sizes.

        The steps are taken: what is in training has moved afterwards.
        """
        pack, rates = self._pack, self._rates()
        places = [self._rows_at(place) for place in PROBED]

        def seconds(rows: Tensor) -> float:
            clock = time.perf_counter()
            batch = self._feed.prepare(take(self._train, rows))
            # Reading the losses waits for the device.
            pack.step(batch, rates, None, None, self._feed.rows_a_pass).tolist()
            return time.perf_counter() - clock

        with pack.attached(self._example, training=True):
            seconds(places[0])  # warms up
            turns = [[seconds(rows) for rows in places]]
            if sum(turns[0]) < 1:
                # Each size once more before it counts, and several times.
                turns = [[seconds(rows) for rows in places] for _ in range(4)]
        n = count_rows(self._validation, "validation")
        some = min(n, max(1, self._feed.rows_at_once // len(pack)))
        spread = self._feed.evaluation_order(self._validation)[torch.linspace(0, n - 1, some).long()].to(pack.device)
        part = pick(self._validation, lambda t: t.index_select(0, spread))
        with pack.attached(self._example, training=False):
            clock = time.perf_counter()
            evaluate(pack, part, self._functions, self._feed)[0].tolist()
            validation = (time.perf_counter() - clock) * n / some
        a_step = statistics.mean(statistics.median(times) for times in zip(*turns, strict=True))
        return a_step * self.steps_an_epoch + validation

    def _rows_at(self, place: float) -> Tensor:
        """The rows (G, B) of a step that lie side by side in the order of their size: 0 for the smallest, 1 for the
        largest."""
        order = self._feed.evaluation_order(self._train)
        start = round(place * max(0, len(order) - self._batch_size))
        rows = order[start : start + self._batch_size].to(self._pack.device)
        return rows.expand(len(self._pack.seeds), -1)

    def prune(self, reasons: Mapping[str, str]) -> list[Outcome]:
        """Let runs leave between two epochs, each for a reason; their outcomes have the status "pruned"."""
        return self._leave({name: ("pruned", reason) for name, reason in reasons.items()})

    def kept(self) -> dict[str, State]:
        """The tensors that each run still in training would hand out if it ended now: the best, or the last."""
        best, last = self._pack.states(self._best), self._pack.states()
        rows = zip(self._stopping.names, self._stopping.trainings, strict=True)
        return {name: (best if training.weights == "best" else last)[name] for name, training in rows}

    def state(self) -> TrainingState:
        """All that is needed to go on from here, bit for bit, apart from the base, the data and the runs' settings."""
        names, pack = self._stopping.names, self._pack
        by_run = {"now": pack.states(), "best": pack.states(self._best), "moments": pack.optimiser_state()}
        tensors = {
            f"{kind}/{k}/{key}": value
            for kind, states in by_run.items()
            for k, name in enumerate(names)
            for key, value in states[name].items()
        }
        vectors = {f"stopping.{key}": value for key, value in self._stopping.state().items()}
        vectors |= {f"schedule.{key}": value for key, value in self._schedules.state().items()}
        vectors |= {f"scaling.{key}": value for key, value in pack.scaling_state().items()}
        vectors["loss.total"] = self._total
        tensors |= {f"vector/{key}": value.detach().cpu().clone() for key, value in vectors.items()}
        plain = {"names": list(names), "epoch": self.epoch, "steps": pack.steps, "seconds": self._seconds()}
        return TrainingState(tensors, plain)

    def restore(self, state: TrainingState) -> None:
        """Go on from what `state` gave, in a new object made with the same base, data and settings.

        The runs may be more than those in the state: the others have ended, and leave.

        Raises:
            CheckpointError: The state has runs that this training has not.
        """
        if strange := [name for name in state.names if name not in self._stopping.names]:
            raise CheckpointError(f"The state has {', '.join(strange)}, which this pack does not train.")
        self._keep(state.names)
        self._pack.load(state.states("now"), state.states("moments"), state.plain["steps"])
        self._best = self._pack.rows_of(state.states("best"))
        order = [state.names.index(name) for name in self._stopping.names]
        of = {
            what: {key: v[order] for key, v in state.vectors(what).items()}
            for what in ("stopping", "schedule", "scaling", "loss")
        }
        self._stopping.load_state(of["stopping"])
        self._schedules.load_state(of["schedule"])
        self._pack.load_scaling(of["scaling"])
        self._total = of["loss"]["total"].to(self._total)
        self.epoch = state.plain["epoch"]
        self._started = time.perf_counter() - state.plain["seconds"]

    def _rates(self) -> Tensor:
        lr = self._stopping.lr
        return self._schedules.factor(self._pack.steps).to(lr) * lr

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _leave(self, ended: Mapping[str, tuple[str, str | None]]) -> list[Outcome]:
        if not ended:
            return []
        seconds, of, states = self._seconds(), self._stopping, self.kept()
        best_steps = dict(zip(of.names, of.best_step.tolist(), strict=True))
        outcomes = [
            Outcome(name, states[name], *how, best_steps[name], self._pack.steps, self.epoch, seconds)
            for name, how in ended.items()
        ]
        self._keep([name for name in of.names if name not in ended])
        return outcomes

    def _keep(self, names: Sequence[str]) -> None:
        """Cut out all other runs."""
        if not names:
            self.done = True
            return
        mask = torch.tensor([name in names for name in self._stopping.names], device=self._pack.device)
        if mask.all():
            return
        cut = self._pack.keep(mask, self._best)
        self._best = self._best if cut is None else cut
        self._total = self._total[mask]
        self._stopping.keep(mask)
        self._schedules.keep(mask.cpu())


def train_pack(
    model: nn.Module,
    runs: Sequence[tuple[Member, Training]],
    train: Data,
    validation: Data,
    loss: PerBatch,
    metric: PerBatch,
    *,
    states: Mapping[str, State] | None = None,
    feed: Feed | None = None,
    on_epoch: Callable[[list[Point]], None] = lambda points: None,
) -> Iterator[Outcome]:
    """Train runs together in one pack, and hand out each one as soon as it is done.

    Args:
        model: As `PackTraining` takes it, like all that is not named here.
        runs: What to train and how.
        train: Training data.
        validation: Validation data.
        loss: The loss.
        metric: The metric.
        states: Tensors to start from, by member name; others start from their initialisation.
        feed: How data reach the model.
        on_epoch: Called after every epoch with a point for each adapter that took part.

    Yields:
        The outcomes, in the order in which runs end.

    Raises:
        ConfigError: The runs have different batch sizes.
        DataError: A data set is empty or its tensors differ in length.
        PackError: These runs can't share a pack.
    """
    training = PackTraining(model, runs, train, validation, loss, metric, states=states, feed=feed)
    while not training.done:
        epoch = training.advance()
        if epoch is not None:
            on_epoch(epoch.points)
            yield from epoch.ended
