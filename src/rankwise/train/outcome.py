"""Results of training: a point after every epoch, an outcome at the end of a run."""

from dataclasses import dataclass

import numpy as np

from rankwise.pack.resolved import AdapterState
from rankwise.results.kinds import Status


@dataclass(frozen=True)
class EpochPoint:
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
    """The outcome of one run.

    Args:
        name: The member's name.
        state: Its tensors, those that `Training.weights` asks for.
        status: "finished" (all epochs, or stopped early by its own rule), "pruned" (left at a rung), "diverged",
            or "failed" (the loss or the metric raised an error on its outputs).
        reason: Why it ended before its last epoch; None otherwise.
        best_step: The step with the lowest validation loss.
        steps: Steps taken.
        epochs: Passes over the data taken.
        seconds: Time in training from the start of its pack to its end.
        deciding: Cross-fitted metric of each of its validation rows (`rankwise.train.crossfit`), where it finished and
            its best weights are kept; None otherwise.
    """

    name: str
    state: AdapterState
    status: Status
    reason: str | None
    best_step: int
    steps: int
    epochs: int
    seconds: float
    deciding: np.ndarray | None = None
