"""The training of a pack: epochs, validation, schedules, stopping, keeping the best weights.

Everything that differs between adapters is a vector with an entry for each; adapters that are done leave the pack.
`PackTraining` holds all of it, can stop after any step, give its state and continue from it.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.errors import CheckpointError, ConfigError
from rankwise.pack.batches import selected
from rankwise.pack.losses import PerAdapter, PerBatch
from rankwise.pack.member import Member
from rankwise.pack.model.inspection import Inspections
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from rankwise.pack.step.loss_scale import FIRST_STEPS
from rankwise.results.kinds import Status
from rankwise.train.crossfit import CrossFit
from rankwise.train.data.cuts import Cutting, half_of
from rankwise.train.data.feed import Feed, unchanged
from rankwise.train.data.tensors import Data, count_rows, take
from rankwise.train.evaluation import evaluate_rows
from rankwise.train.events import Epoch, Stepped
from rankwise.train.machine.memory import Room, peak_bytes
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.train.schedules import Schedules
from rankwise.train.settings import Training
from rankwise.train.state import TrainingState
from rankwise.train.stopping import Stopping


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
        cut: Seed -> the rows of `train` and of `validation` that its runs use; None for all.
        inspections: As for `Pack`.

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
        states: Mapping[str, AdapterState] | None = None,
        feed: Feed | None = None,
        cut: Cutting | None = None,
        inspections: Inspections | None = None,
    ) -> None:
        sizes = {training.batch_size for _, training in runs}
        if len(sizes) != 1:
            raise ConfigError(f"Runs with batch sizes {sorted(sizes)} can't share a pack; make one pack for each.")
        self.batch_size = sizes.pop()
        self._feed, self._train, self._validation = feed or Feed(), train, validation
        self._cuts = None if cut is None else {seed: cut(seed) for seed in {member.seed for member, _ in runs}}
        rows = count_rows(train, "training"), count_rows(validation, "validation")
        # Every seed's cut has as many rows.
        one = None if self._cuts is None else next(iter(self._cuts.values()))
        self._n, n_validation = rows if one is None else (len(one.train), len(one.validation))
        self.steps_an_epoch = -(-self._n // self.batch_size)
        self._started = time.perf_counter()
        self._pack = pack = Pack(
            model,
            [member for member, _ in runs],
            loss,
            states=states,
            call=self._feed.call,
            precision=self._feed.precision,
            inspections=inspections,
        )
        of_rows = PerAdapter(loss, "loss", piece=self.batch_size, spare=True)
        self._functions = [of_rows, PerAdapter(metric, "metric", spare=True)]
        pack.step_rows = self._feed.rows_a_pass or self.batch_size
        by_name = {member.name: training for member, training in runs}
        names = [member.member.name for member in pack.members]
        trainings = [by_name[name] for name in names]
        self._stopping = Stopping(names, trainings, pack.device, pack.dtype)
        self._schedules = Schedules(
            [t.schedule for t in trainings],
            [t.warmup for t in trainings],
            [t.horizon or t.epochs * self.steps_an_epoch for t in trainings],
        )
        self._crossfit: CrossFit | None = None
        if n_validation > 1 and any(t.weights == "best" for t in trainings):
            half = torch.stack([half_of(n_validation, member.member.seed) for member in pack.members])
            self._crossfit = CrossFit(half, pack.device, pack.dtype)
        self._total, self._norms = torch.zeros(len(pack), device=pack.device), pack.gradient_norms()
        self._best, self._example = pack.rows(), self._feed.example_of(train, self.batch_size)
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._failed: dict[str, str] = {}
        self._room = Room(pack.device, self._feed.largest(train, self.batch_size, pack.seeds))
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
        """Notes for the user about the pack."""
        return self._pack.notes

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._pack.steps

    def advance(self, pause: Callable[[], bool] = lambda: False) -> Epoch | None:
        """Train to the end of the epoch, evaluate, and let those leave that are done.

        Args:
            pause: Asked after each step but the epoch's last; where it says True, training stops there, and the next
                call continues as if nothing had happened.

        Returns:
            What the epoch gave; None where it was stopped within.
        """
        with closing(self.by_step()) as steps:
            for epoch in steps:
                if epoch is not None:
                    return epoch
                if pause():
                    break
        return None

    def by_step(self) -> Generator[Epoch | None]:
        """Train to the end of the epoch step by step, evaluate, and let those leave that are done.

        Closed after any step, training stops there, and the next call continues as if nothing had happened. Until it is
        closed or at its end the model is not the plain base.

        Yields:
            None after each step but the epoch's last, then what the epoch gave.
        """
        pack, of = self._pack, self._stopping
        weight_decay = of.weight_decay if of.weight_decay.any() else None
        clip = of.clip if of.clip.isfinite().any() else None
        order = self._feed.order(self._train, pack.seeds, self.epoch, self.batch_size, self._rows("train"))
        order, rates = order.to(pack.device), self._rates()
        with pack.attached(self._example, training=True):
            if self._feed.prepare is unchanged:
                self._train, self._validation = map(pack.with_products, (self._train, self._validation))
            while (within := pack.steps - self.epoch * self.steps_an_epoch) < self.steps_an_epoch:
                rows = order[:, within * self.batch_size : (within + 1) * self.batch_size]
                if self._schedules.moves_each_step(pack.steps):
                    rates = self._rates()
                batch = self._feed.prepare(take(self._train, rows))
                with self._room.of(batch):
                    losses = pack.gradients(batch, self._feed.rows_a_pass, self._feed.processes)
                self._note_failures(pack.loss)
                pack.update(rates, weight_decay, clip)
                self._total.add_(losses, alpha=rows.shape[1])
                self._unread.append((losses, rates))
                if within + 1 < self.steps_an_epoch:
                    yield None
                else:
                    self._norms = pack.gradient_norms()
        yield self._end_epoch(rates)

    def _end_epoch(self, rates: Tensor) -> Epoch:
        """Evaluate, and let those leave that are done."""
        pack, of = self._pack, self._stopping
        with pack.attached(self._example, training=False):
            own = self._rows("validation")
            losses, metrics = evaluate_rows(pack, self._validation, self._functions, self._feed, own)
        if self._feed.processes is not None:
            self._feed.processes.take_first([losses, metrics])
        self._note_failures(self._functions[0])
        validation_loss, validation_metric = losses.mean(1), metrics.mean(1)
        train_loss = self._total / self._n
        finite = train_loss.isfinite() & validation_loss.isfinite() & ~pack.stuck(max(self.steps_an_epoch, FIRST_STEPS))
        self._note_failures(self._functions[1], finite.tolist())  # else it diverged, whatever a metric does with that
        finite &= torch.tensor([name not in self._failed for name in of.names]).to(finite)
        pack.copy_rows(self._best, of.observe(validation_loss.where(finite, torch.nan), pack.steps))
        if self._crossfit is not None:
            self._crossfit.observe(losses.where(finite.unsqueeze(1), torch.nan), metrics)
        self._schedules.observe(validation_loss.double().cpu())
        columns = [c.tolist() for c in (train_loss, validation_loss, validation_metric, rates, self._norms)]
        points = [EpochPoint(name, pack.steps, *numbers) for name, *numbers in zip(of.names, *columns, strict=True)]
        self.epoch, self._total = self.epoch + 1, torch.zeros_like(self._total)
        return Epoch(self.read_steps(), points, self._leave(of.ended(finite.tolist(), self.epoch, self._failed)))

    def _note_failures(self, function: PerAdapter, of: Sequence[bool] | None = None) -> None:
        """Take over on which adapters (of these) a user's function has raised since it was last asked."""
        if not function.failed:
            return
        names = self._stopping.names
        self._failed = {names[k]: why for k, why in function.failed.items() if of is None or of[k]} | self._failed
        function.failed.clear()

    def read_steps(self) -> Stepped:
        """Losses and rates of the steps since they were last read, from the device, which this waits for."""
        unread, self._unread = self._unread, []
        losses, rates = (
            (tuple(map(tuple, torch.stack(column).tolist())) if column else () for column in zip(*unread, strict=True))
            if unread
            else ((), ())
        )
        return Stepped(tuple(self._stopping.names), self.steps, losses, rates)

    def peak_bytes(self, *, moves: bool = False) -> int:
        """The memory that the gradients of the largest step take beyond the base's and the pack's own, measured by
        computing them; nothing is trained. With `moves` the step is taken to its end all the same, for who watches what
        is resident: what the optimiser makes comes on top of what glibc keeps of the gradients."""
        with self.attached(training=True):
            batch = self._feed.prepare(take(self._train, self._rows_at(1.0)))
            with self._room.of(batch):
                found = peak_bytes(lambda: self._pack.gradients(batch, self._feed.rows_a_pass), self._pack.device)
            if moves:
                self._pack.update(self._rates(), None, None)
            return found

    @contextmanager
    def attached(self, *, training: bool) -> Generator[None]:
        """Run the model as the pack inside this block, for `timed_step` or `timed_evaluation`."""
        with self._pack.attached(self._example, training=training):
            yield

    def timed_step(self, place: float) -> float:
        """Take a step that doesn't count, at a place from the smallest rows (0) to the largest (1), and return its
        seconds; inside `attached(training=True)`. What is in training has moved afterwards."""
        rows, rates = self._rows_at(place), self._rates()
        clock = time.perf_counter()
        batch = self._feed.prepare(take(self._train, rows))
        # Reading the losses waits for the device.
        self._pack.step(batch, rates, None, None, self._feed.rows_a_pass).tolist()
        return time.perf_counter() - clock

    def sizes(self, places: Sequence[float]) -> tuple[list[int], list[int]]:
        """How many numbers the steps at these places read, and those of an epoch."""
        own = [self._feed.size_of(self._train, self._rows_at(place)) for place in places]
        if len(set(own)) == 1:
            return own, own[:1]
        order = self._feed.order(self._train, self._pack.seeds, 0, self.batch_size, self._rows("train"))
        return own, self._feed.sizes(self._train, order.to(self._pack.device).split(self.batch_size, 1))

    def timed_evaluation(self, rows: int) -> float:
        """Evaluate some validation rows of middling size, and return the seconds that as many take in the mean of all;
        inside `attached(training=False)`.

        Args:
            rows: How many, at most `validation_rows`.
        """
        own, part = self._rows("validation"), self._validation
        order = self._feed.evaluation_order(part).to(self._pack.device)
        order = order if own is None else order[torch.isin(order, own[0])]
        chosen = order[(len(order) - rows) // 2 :][:rows]
        read, of_seeds = (selected(part, chosen), None) if own is None else (part, chosen.expand(len(own), -1))
        clock = time.perf_counter()
        evaluate_rows(self._pack, read, self._functions, self._feed, of_seeds)[0].tolist()
        return (time.perf_counter() - clock) * self._feed.mean_growth(part, chosen, order)

    @property
    def validation_rows(self) -> int:
        """Validation rows of each run."""
        own = self._rows("validation")
        return count_rows(self._validation, "validation") if own is None else own.shape[1]

    def _rows_at(self, place: float) -> Tensor:
        """The rows (G, B) of a step that lie side by side in the order of their size: 0 for the smallest, 1 for the
        largest."""
        order = self._feed.evaluation_order(self._train)
        start = round(place * max(0, len(order) - self.batch_size))
        rows = order[start : start + self.batch_size].to(self._pack.device)
        return rows.expand(len(self._pack.seeds), -1)

    def _rows(self, part: Literal["train", "validation"]) -> Tensor | None:
        """The rows (G, n) of each seed in training or validation data; None where all seeds use all."""
        if self._cuts is None:
            return None
        return torch.stack([getattr(self._cuts[seed], part) for seed in self._pack.seeds])

    def final_states(self) -> dict[str, AdapterState]:
        """The tensors that each run still in training would hand out if it ended now: the best, or the last."""
        kept = {training.weights for training in self._stopping.trainings}  # each is a copy of all that is trained
        of = {which: self._pack.states(self._best if which == "best" else None) for which in kept}
        rows = zip(self._stopping.names, self._stopping.trainings, strict=True)
        return {name: of[training.weights][name] for name, training in rows}

    def state(self) -> TrainingState:
        """All that is needed to continue from here, bit for bit, without the base, the data and the runs' settings."""
        self._room.make_again()  # for several copies of what is trained
        names, pack = self._stopping.names, self._pack
        by_run = {"now": pack.states(), "best": pack.states(self._best), "moments": pack.optimiser_state()}
        tensors = {
            f"{kind}/{k}/{key}": value
            for kind, states in by_run.items()
            for k, name in enumerate(names)
            for key, value in states[name].items()
        }
        crossfit = {} if self._crossfit is None else self._crossfit.state()
        vectors = {f"stopping.{key}": value for key, value in self._stopping.state().items()}
        vectors |= {f"schedule.{key}": value for key, value in self._schedules.state().items()}
        vectors |= {f"scaling.{key}": value for key, value in pack.scaling_state().items()}
        vectors |= {f"crossfit.{key}": value for key, value in crossfit.items()}
        vectors |= {"loss.total": self._total, "loss.norms": self._norms}
        tensors |= {f"vector/{key}": value.detach().cpu().clone() for key, value in vectors.items()}
        plain = {"names": list(names), "epoch": self.epoch, "steps": pack.steps, "seconds": self._seconds()}
        plain["failed"] = self._failed
        # What decides how many rows an evaluation passes at once, and so its last bits.
        plain["evaluation_bytes"] = {str(k): dict(of) for k, of in pack.evaluation_bytes.items()}
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
        self._best = self._pack.vector_of(state.states("best"))
        order = [state.names.index(name) for name in self._stopping.names]
        kinds = ("stopping", "schedule", "scaling", "crossfit", "loss")
        of = {what: {key: v[order] for key, v in state.vectors(what).items()} for what in kinds}
        self._stopping.load_state(of["stopping"])
        self._schedules.load_state(of["schedule"])
        self._pack.load_scaling(of["scaling"])
        if self._crossfit is not None:
            self._crossfit.load_state(of["crossfit"])
        self._total, self._norms = (of["loss"][key].to(self._total) for key in ("total", "norms"))
        self._pack.evaluation_bytes |= {int(k): dict(of) for k, of in state.plain["evaluation_bytes"].items()}
        self.epoch, self._failed = state.plain["epoch"], state.plain.get("failed", {})
        self._started = time.perf_counter() - state.plain["seconds"]

    def _rates(self) -> Tensor:
        lr = self._stopping.lr
        return self._schedules.factor(self._pack.steps).to(lr) * lr

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _leave(self, ended: Mapping[str, tuple[Status, str | None]]) -> list[Outcome]:
        if not ended:
            return []
        at, of, states = (self._pack.steps, self.epoch, self._seconds()), self._stopping, self.final_states()
        best_steps = dict(zip(of.names, of.best_step.tolist(), strict=True))
        outcomes = [
            Outcome(
                name, states[name], *how, best_steps[name], *at, self._deciding(name) if how[0] == "finished" else None
            )
            for name, how in ended.items()
        ]
        self._keep([name for name in of.names if name not in ended])
        return outcomes

    def _deciding(self, name: str) -> np.ndarray | None:
        """A run's cross-fitted metric, where the best of its weights are kept."""
        k = self._stopping.names.index(name)
        if self._crossfit is None or self._stopping.trainings[k].weights != "best":
            return None
        return self._crossfit.values[k].cpu().numpy()

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
        self._total, self._norms = self._total[mask], self._norms[mask]
        self._stopping.keep(mask)
        if self._crossfit is not None:
            self._crossfit.keep(mask)
        self._schedules.keep(mask.cpu())
