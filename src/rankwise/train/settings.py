"""`Training`: how one adapter is trained, and the only place with these defaults."""

import math
from dataclasses import InitVar, dataclass, field, fields
from typing import Annotated, Any

from rankwise.errors import ConfigError
from rankwise.pack.optimisers import AdamW, Optimiser, optimiser_of, record_of
from rankwise.requirements import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, Requirement, require, require_known
from rankwise.train.schedules import SCHEDULES

WEIGHTS = ("best", "last")

NORM = Requirement(lambda norm: norm > 0, "it must be a positive norm, or left out")
WARMUP_STEPS = Requirement(lambda steps: steps >= 0, "it must be a whole number of steps, 0 for none")


class _NoRate(float):
    """One object in every process: a pickle holds its name."""

    def __reduce__(self) -> str:
        return "NO_LR"


NO_LR = _NoRate("nan")
"""The learning rate of settings that say none: a sweep has its own."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of one run's optimiser, schedule and stopping.

    Args:
        lr: Learning rate; left out where a sweep tries several.
        weight_decay: Decoupled with AdamW, a part of the gradient with SGD.
        optimiser: An optimiser with its settings, such as `SGD(momentum=0.9)`, or the name of one, such as "sgd".
        betas: Sets the optimiser's `betas`; read it, and the next three, at `optimiser`.
        eps: Sets its `eps`.
        momentum: Sets its `momentum`.
        nesterov: Sets its `nesterov`.
        lr_ratio: Learning rate of B as a multiple of A's, of adapters that train both (LoRA+; Hayou et al., 2024, take
            16). Weight decay stays as with 1.
        clip: Largest norm of the gradient over all of the adapter's tensors; None for no clipping.
        batch_size: Rows of a step.
        epochs: Passes over the training data, at most.
        schedule: How the learning rate moves: a name in `rankwise.train.schedules.SCHEDULES`.
        horizon: Steps over which the schedule runs its course; None for those of the run. A run that replaces a
            longer one has the longer one's: rates that suit a short course are too high for a long one.
        warmup: Steps over which the learning rate rises linearly from 0; the first takes 1/warmup of it.
        patience: Stop after this many epochs without a lower validation loss; None to train all epochs.
        weights: "best": those with the lowest validation loss are kept; "last": those of the last step.

    Raises:
        ConfigError: A value is out of its range, or a name is not known.
    """

    lr: float = NO_LR
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    optimiser: Optimiser | str = field(default_factory=AdamW)
    betas: InitVar[tuple[float, float] | None] = None
    eps: InitVar[float | None] = None
    momentum: InitVar[float | None] = None
    nesterov: InitVar[bool | None] = None
    lr_ratio: Annotated[float, POSITIVE] = 1.0
    clip: Annotated[float | None, NORM] = None
    batch_size: Annotated[int, AT_LEAST_ONE] = 64
    epochs: Annotated[int, AT_LEAST_ONE] = 60
    schedule: str = "constant"
    horizon: Annotated[int | None, AT_LEAST_ONE] = None
    warmup: Annotated[int, WARMUP_STEPS] = 0
    patience: Annotated[int | None, AT_LEAST_ONE] = None
    weights: str = "best"

    def __post_init__(
        self,
        betas: tuple[float, float] | None,
        eps: float | None,
        momentum: float | None,
        nesterov: bool | None,
    ) -> None:
        given = {"betas": betas, "eps": eps, "momentum": momentum, "nesterov": nesterov}
        object.__setattr__(self, "optimiser", optimiser_of(self.optimiser, **given))
        if self.has_lr and not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"The learning rate is {self.lr!r}; it must be a positive number, such as 3e-4.")
        require(self)
        require_known("schedule", self.schedule, SCHEDULES)
        require_known("weights", self.weights, WEIGHTS)

    @property
    def has_lr(self) -> bool:
        """Whether a learning rate was given."""
        return self.lr is not NO_LR

    def record(self) -> dict[str, Any]:
        """All settings as results have them, those of the optimiser among them."""
        record: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "lr_ratio" and value == 1.0:
                continue  # as earlier versions recorded it
            record |= record_of(value) if isinstance(value, Optimiser) else {one.name: value}
        return record
