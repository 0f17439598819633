"""The settings of each optimiser, as objects that are carried whole: `Training(optimiser=SGD(momentum=0.9))`."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar

from rankwise.errors import ConfigError
from rankwise.requirements import POSITIVE, Requirement, require, require_known

BETAS_RANGE = Requirement(
    lambda betas: all(0 <= beta < 1 for beta in betas), "both must be at least 0 and below 1, such as (0.9, 0.999)"
)
MOMENTUM_RANGE = Requirement(
    lambda m: math.isfinite(m) and 0 <= m < 1, "it must be at least 0 and below 1, such as 0.9"
)


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Settings of an optimiser; its name is its key in `rankwise.pack.step.table.OPTIMISERS`."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        require(self)

    def bucket_key(self) -> tuple[object, ...]:
        """The settings that adapters of one bucket must share; none where each number takes its own adapter's."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Moments(Optimiser):
    """Settings of optimisers that divide by the root of a second moment.

    Args:
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the second moment.
    """

    betas: Annotated[tuple[float, float], BETAS_RANGE] = (0.9, 0.999)
    eps: Annotated[float, POSITIVE] = 1e-8

    def bucket_key(self) -> tuple[object, ...]:
        """A kernel takes one value of each."""
        return self.betas, self.eps


class AdamW(Moments):
    """Adam with decoupled weight decay.

    Args:
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the second moment.

    Raises:
        ConfigError: A value is out of its range.
    """

    name = "adamw"


class Muon(Moments):
    """Muon for matrices, and AdamW for the rest.

    Args:
        betas: Of AdamW.
        eps: Of AdamW.

    Raises:
        ConfigError: A value is out of its range.
    """

    name = "muon"


@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    """Stochastic gradient descent.

    Args:
        momentum: How much of the last step's velocity stays.
        nesterov: Whether the step is Nesterov's.

    Raises:
        ConfigError: A value is out of its range, or Nesterov's step has no momentum.
    """

    name = "sgd"

    momentum: Annotated[float, MOMENTUM_RANGE] = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov is True and momentum 0; Nesterov's step needs a momentum, such as 0.9.")


OPTIMISER_SETTINGS: dict[str, type[Optimiser]] = {kind.name: kind for kind in (AdamW, SGD, Muon)}
"""Name -> settings."""


def optimiser_of(given: Optimiser | str, **changed: Any) -> Optimiser:
    """An optimiser's settings, from its name or from themselves.

    Args:
        given: The settings, or the name of an optimiser with its defaults.
        changed: Settings that differ; None leaves one as it is.

    Raises:
        ConfigError: There is no such optimiser, or it has no such setting.

    Examples:
        >>> optimiser_of("sgd", momentum=0.9, betas=None)
        SGD(momentum=0.9, nesterov=False)
    """
    if isinstance(given, str):
        require_known("optimiser", given, OPTIMISER_SETTINGS)
        given = OPTIMISER_SETTINGS[given]()
    elif not isinstance(given, Optimiser):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"optimiser is {given!r}; give a name ({', '.join(OPTIMISER_SETTINGS)}) or settings such as SGD()."
        )
    own, changed = setting_names(type(given)), {name: value for name, value in changed.items() if value is not None}
    for name, value in changed.items():
        owners = [kind.name for kind in OPTIMISER_SETTINGS.values() if name in setting_names(kind)]
        if name not in own and value != _DEFAULTS[name]:
            raise ConfigError(
                f'{name} is {value}, a setting of {" and ".join(owners)}; optimiser="{given.name}" has '
                f"{', '.join(own) or 'none'}. Leave it out, or choose the other optimiser."
            )
    return replace(given, **{name: value for name, value in changed.items() if name in own})


def setting_names(kind: type[Optimiser]) -> list[str]:
    """The settings that an optimiser has."""
    return [field.name for field in fields(kind)]


_DEFAULTS: dict[str, Any] = {
    name: value for kind in OPTIMISER_SETTINGS.values() for name, value in asdict(kind()).items()
}


def record_of(optimiser: Optimiser) -> dict[str, Any]:
    """Name and settings as results have them: those of the other optimisers are at their defaults.

    Examples:
        >>> record_of(SGD(momentum=0.9))
        {'optimiser': 'sgd', 'betas': (0.9, 0.999), 'eps': 1e-08, 'momentum': 0.9, 'nesterov': False}
    """
    return {"optimiser": optimiser.name, **_DEFAULTS, **asdict(optimiser)}
