"""`Training`: how one adapter is trained, and the only place with these defaults."""

import math
from dataclasses import dataclass, fields

from rankwise.errors import ConfigError, suggest
from rankwise.pack.step.table import OPTIMISERS
from rankwise.train.schedules import SCHEDULES

WEIGHTS = ("best", "last")


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
        optimiser: A name in `rankwise.pack.step.table.OPTIMISERS`, such as "adamw" or "sgd".
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's epsilon.
        momentum: SGD's.
        nesterov: Whether SGD's step is Nesterov's.
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
    weight_decay: float = 0.0
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    clip: float | None = None
    batch_size: int = 64
    epochs: int = 60
    schedule: str = "constant"
    horizon: int | None = None
    warmup: int = 0
    patience: int | None = None
    weights: str = "best"

    def __post_init__(self) -> None:
        if self.has_lr and not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"The learning rate is {self.lr!r}; it must be a positive number, such as 3e-4.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay is {self.weight_decay!r}; it must be 0 or a positive number.")
        counts = {name: getattr(self, name) for name in ("batch_size", "epochs", "patience", "horizon")}
        for what, value in counts.items():
            if value is not None and (value < 1 or value != int(value)):
                raise ConfigError(f"{what} is {value}; it must be a whole number of at least 1.")
        if self.warmup < 0:
            raise ConfigError(f"warmup is {self.warmup}; it must be a whole number of steps, 0 for none.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; both must be at least 0 and below 1, such as (0.9, 0.999).")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ConfigError(f"eps is {self.eps!r}; it must be a positive number, such as 1e-8.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum!r}; it must be at least 0 and below 1, such as 0.9.")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov is True and momentum 0; Nesterov's step needs a momentum, such as 0.9.")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip!r}; it must be a positive norm, or left out.")
        named = (
            ("schedule", self.schedule, SCHEDULES),
            ("weights", self.weights, WEIGHTS),
            ("optimiser", self.optimiser, OPTIMISERS),
        )
        for what, name, known in named:
            if name not in known:
                raise ConfigError(f'{what} "{name}" is not known; there are {", ".join(known)}.{suggest(name, known)}')
        self._check_settings_of_optimiser()

    def _check_settings_of_optimiser(self) -> None:
        """Raise where a setting was changed that the chosen optimiser doesn't have."""
        own = OPTIMISERS[self.optimiser].settings
        defaults = {one.name: one.default for one in fields(self)}
        for setting in dict.fromkeys(setting for kind in OPTIMISERS.values() for setting in kind.settings):
            value = getattr(self, setting)
            if setting not in own and value != defaults[setting]:
                owners = [name for name, kind in OPTIMISERS.items() if setting in kind.settings]
                raise ConfigError(
                    f'{setting} is {value}, a setting of {" and ".join(owners)}; optimiser="{self.optimiser}" has '
                    f"{', '.join(own) or 'none'}. Leave it out, or choose the other optimiser."
                )

    @property
    def has_lr(self) -> bool:
        """Whether a learning rate was given."""
        return self.lr is not NO_LR
