"""The training loop of a pack: epochs, validation, schedules, stopping, keeping the best weights.

Everything that differs between adapters is a vector with an entry for each; adapters that are done leave the pack.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError
from rankwise.pack.losses import PerAdapter, PerBatch
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import State
from rankwise.train.data import Data, count_rows, epoch_order, pick, take
from rankwise.train.schedules import Schedules
from rankwise.train.settings import Training

ROWS_AT_ONCE = 1 << 16
"""Rows, over all adapters, that an evaluation passes through the model at once."""


@dataclass(frozen=True)
class Point:
    """One adapter after one epoch: a line of curves.csv."""

    run: str
    step: int
    train_loss: float
    validation_loss: float
    metric: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Args:
        name: The member's name.
        state: Its tensors, those that `Training.weights` asks for.
        status: "finished" (all epochs, or stopped early by its own rule) or "diverged".
        reason: Why it ended before its last epoch; None otherwise.
        best_step: The step with the lowest validation loss.
        steps: Steps taken.
        epochs: Passes over the data taken.
        seconds: From the start of its pack to its end.
    """

    name: str
    state: State
    status: str
    reason: str | None
    best_step: int
    steps: int
    epochs: int
    seconds: float


@dataclass
class _Vectors:
    """The state of stopping and of the optimiser's settings, in the order of the pack."""

    trainings: list[Training]
    lr: Tensor
    weight_decay: Tensor
    clip: Tensor
    best: Tensor
    best_step: Tensor
    since_best: Tensor
    names: list[str] = field(default_factory=list)

    def keep(self, mask: Tensor) -> None:
        stays = mask.tolist()
        self.trainings = [t for t, s in zip(self.trainings, stays, strict=True) if s]
        self.names = [n for n, s in zip(self.names, stays, strict=True) if s]
        for key in ("lr", "weight_decay", "clip", "best", "best_step", "since_best"):
            setattr(self, key, getattr(self, key)[mask])


def train_pack(
    model: nn.Module,
    runs: Sequence[tuple[Member, Training]],
    train: Data,
    validation: Data,
    loss: PerBatch,
    metric: PerBatch,
    *,
    states: Mapping[str, State] | None = None,
    on_epoch: Callable[[list[Point]], None] = lambda points: None,
) -> Iterator[Outcome]:
    """Train runs together in one pack, and hand out each one as soon as it is done.

    Args:
        model: The base; the same, bit for bit, whenever this hands something out.
        runs: What to train and how; all with one batch size.
        train: Training data, tensors with the rows first, on the model's device.
        validation: Data on which loss and metric are taken after every epoch.
        loss: loss(outputs, batch) of one adapter.
        metric: metric(outputs, batch) of one adapter.
        states: Tensors to start from, by member name.
        on_epoch: Called after every epoch with a point for each adapter that took part.

    Yields:
        The outcomes, in the order in which runs end.

    Raises:
        ConfigError: The runs have different batch sizes.
        DataError: A data set is empty or its tensors differ in length.
        PackError: These runs can't share a pack.
    """
    sizes = {training.batch_size for _, training in runs}
    if len(sizes) != 1:
        raise ConfigError(f"Runs with batch sizes {sorted(sizes)} can't share a pack; make one pack for each.")
    batch_size = sizes.pop()
    n = count_rows(train, "training")
    count_rows(validation, "validation")
    steps_an_epoch = -(-n // batch_size)
    started = time.perf_counter()
    pack = Pack(model, [member for member, _ in runs], loss, states=states)
    per_metric, per_loss = PerAdapter(metric, "metric"), PerAdapter(loss, "loss")
    v = _vectors(pack, {member.name: training for member, training in runs})
    schedules = Schedules(
        [t.schedule for t in v.trainings],
        [t.warmup for t in v.trainings],
        [t.epochs * steps_an_epoch for t in v.trainings],
    )
    best = pack.rows()
    example = pick(train, lambda t: t[:2])
    for epoch in range(max(t.epochs for t in v.trainings)):
        total = torch.zeros(len(pack), device=pack.device)
        rates = schedules.factor(pack.steps).to(pack.device, v.lr.dtype) * v.lr
        weight_decay = v.weight_decay if v.weight_decay.any() else None
        clip = v.clip if v.clip.isfinite().any() else None
        order = epoch_order(pack.seeds, epoch, n, pack.device)
        with pack.attached(example, training=True):
            for start in range(0, n, batch_size):
                rows = order[:, start : start + batch_size]
                if schedules.moves_each_step(pack.steps):
                    rates = schedules.factor(pack.steps).to(pack.device, v.lr.dtype) * v.lr
                losses = pack.step(take(train, rows), rates, weight_decay, clip)
                total += losses * rows.shape[1]
        norms = pack.gradient_norms()
        with pack.attached(example, training=False):
            validation_loss, validation_metric = evaluate(pack, validation, [per_loss, per_metric])
        ok = total.isfinite() & validation_loss.isfinite()
        better = ok & (validation_loss < v.best)
        pack.copy_rows(best, better)
        v.best = torch.where(better, validation_loss, v.best)
        v.best_step[better] = pack.steps
        v.since_best = torch.where(better, 0, v.since_best + 1)
        schedules.observe(validation_loss.double().cpu())
        columns = (total / n, validation_loss, validation_metric, rates, norms)
        on_epoch(
            [
                Point(name, pack.steps, *numbers)
                for name, *numbers in zip(v.names, *(c.tolist() for c in columns), strict=True)
            ]
        )
        ended = _ended(v, ok.tolist(), epoch + 1)
        if ended:
            seconds = time.perf_counter() - started
            kept, last = pack.states(best), pack.states()
            for k, (status, reason) in ended.items():
                state = (kept if v.trainings[k].weights == "best" else last)[v.names[k]]
                yield Outcome(v.names[k], state, status, reason, int(v.best_step[k]), pack.steps, epoch + 1, seconds)
            mask = torch.tensor([k not in ended for k in range(len(pack))], device=pack.device)
            if not mask.any():
                return
            cut = pack.keep(mask, best)
            best = best if cut is None else cut
            v.keep(mask)
            schedules.keep(mask.cpu())


def _ended(v: _Vectors, ok: Sequence[bool], epochs: int) -> dict[int, tuple[str, str | None]]:
    """The adapters that are done after so many epochs: place -> (status, reason)."""
    ended: dict[int, tuple[str, str | None]] = {}
    for k, (training, since_best) in enumerate(zip(v.trainings, v.since_best.tolist(), strict=True)):
        if not ok[k]:
            ended[k] = ("diverged", f"the loss was not finite in epoch {epochs}")
        elif epochs >= training.epochs:
            ended[k] = ("finished", None)
        elif training.patience is not None and since_best >= training.patience:
            ended[k] = ("finished", f"no lower validation loss for {training.patience} epochs")
    return ended


def evaluate(pack: Pack, data: Data, functions: Sequence[PerAdapter]) -> list[Tensor]:
    """Mean over a data set of each function for every adapter: (K,) each; inside `attached(training=False)`."""
    return [values.mean(1) for values in evaluate_rows(pack, data, functions)]


def evaluate_rows(pack: Pack, data: Data, functions: Sequence[PerAdapter]) -> list[Tensor]:
    """Value of each function for every adapter and row: (K, n) each; inside `attached(training=False)`.

    A function that returns a scalar for a batch counts for each of its rows.
    """
    n = count_rows(data, "evaluation")
    chunk = max(1, ROWS_AT_ONCE // len(pack))
    parts: list[list[Tensor]] = [[] for _ in functions]
    for start in range(0, n, chunk):
        batch = pick(data, lambda t, start=start: t[start : start + chunk])
        rows = min(chunk, n - start)
        for part, values in zip(parts, pack.evaluate(batch, functions), strict=True):
            part.append(values if values.dim() == 2 else values.unsqueeze(1).expand(-1, rows))
    return [torch.cat(part, dim=1) for part in parts]


def _vectors(pack: Pack, trainings: Mapping[str, Training]) -> _Vectors:
    names = [member.member.name for member in pack.members]
    ordered = [trainings[name] for name in names]

    def vector(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=pack.device, dtype=pack.dtype)

    return _Vectors(
        trainings=ordered,
        names=names,
        lr=vector([t.lr for t in ordered]),
        weight_decay=vector([t.weight_decay for t in ordered]),
        clip=vector([torch.inf if t.clip is None else t.clip for t in ordered]),
        best=vector([torch.inf] * len(ordered)),
        best_step=torch.zeros(len(ordered), dtype=torch.long, device=pack.device),
        since_best=torch.zeros(len(ordered), dtype=torch.long, device=pack.device),
    )
