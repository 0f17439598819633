"""What a user can set for the digits experiment. Light: the command line reads it without loading torch."""

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rankwise.errors import ConfigError, option, suggest
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.choose.rule import accuracy_tolerance

PROTOCOLS = ("standard", "published")


def parts(text: str) -> tuple[str, ...]:
    """Return the parts of a list that has commas or spaces between them.

    Examples:
        >>> parts("1, 2 4")
        ('1', '2', '4')
    """
    return tuple(re.split(r"\s*,\s*|\s+", text.strip()))


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read "1,2,4", "1:64:x2" (doubling), "0:4" (0 to 4) or "2:10:2" (steps of 2).

    Raises:
        ConfigError: The text is none of these.

    Examples:
        >>> parse_numbers("1:64:x2")
        (1, 2, 4, 8, 16, 32, 64)
        >>> parse_numbers("1,3,5:6")
        (1, 3, 5, 6)
    """
    numbers: list[int] = []
    for part in parts(text):
        first, *rest = part.strip().split(":")
        last, step = [*rest, "", ""][:2]
        try:
            if len(rest) > 2:
                raise ValueError
            low, high, by = int(first), int(last or first), int(step.removeprefix("x") or 1)
        except ValueError:
            raise ConfigError(
                f'"{text}" is no list of whole numbers; write them as 1,2,4 or as a range: 1:64:x2, 0:4, 2:10:2.'
            ) from None
        multiplies = step.startswith("x")
        if by < (2 if multiplies else 1) or (multiplies and low < 1) or high < low:
            raise ConfigError(f'The range "{part}" holds no numbers; write first:last or first:last:step, going up.')
        while low <= high:
            numbers.append(low)
            low = low * by if multiplies else low + by
    return tuple(dict.fromkeys(numbers))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read a number of seeds ("5": 0 to 4) or a list of them ("0,7", "10:14", or "7," for one).

    Raises:
        ConfigError: It is neither, or no seeds.

    Examples:
        >>> parse_seeds("3"), parse_seeds("10:12"), parse_seeds("7,")
        ((0, 1, 2), (10, 11, 12), (7,))
    """
    if text.strip().isdecimal():
        if not int(text):
            raise ConfigError(f'{option("seeds")} is 0; give at least 1 ("0," is seed 0 alone).')
        return tuple(range(int(text)))
    return parse_numbers(text.strip().removesuffix(","))


def parse_rates(text: str) -> tuple[float, ...]:
    """Read learning rates: "1e-3" or "3e-4,1e-3".

    Raises:
        ConfigError: A part is no number.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in parts(text)))
    except ValueError:
        raise ConfigError(f'"{text}" is no list of learning rates; write them as 3e-4,1e-3.') from None


@dataclass(frozen=True, kw_only=True)
class DigitsOptions:
    """Settings of `rankwise digits`; None means the protocol's own value."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seeds: tuple[int, ...] | None = None
    protocol: str = "standard"
    data: str = "embedded"
    epochs: int | None = None
    batch_size: int | None = None
    lr: tuple[float, ...] | None = None
    baseline_lr: tuple[float, ...] | None = None
    alpha: float | None = None
    optimiser: str = "adamw"
    variant: tuple[str, ...] = ("lora",)
    rungs: tuple[int, ...] | None = None
    deciding: Deciding = field(default_factory=Deciding)
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise ConfigError(f"The ranks are {list(self.ranks)}; give one or more whole numbers of at least 1.")
        if self.seeds is not None and (not self.seeds or min(self.seeds) < 0):
            raise ConfigError(f"The seeds are {list(self.seeds)}; give at least one, none below 0.")
        if self.protocol == "right":
            # The name that earlier versions gave it.
            object.__setattr__(self, "protocol", "standard")
        if self.protocol not in PROTOCOLS:
            raise ConfigError(
                f'Protocol "{self.protocol}" is not known; there are "standard" (equal budgets) and '
                f'"published" (the notebook\'s own settings).{suggest(self.protocol, PROTOCOLS)}'
            )
        for what, value in (("epochs", self.epochs), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"--{what} is {value}; it must be a whole number of at least 1.")
        if self.rungs is not None and (not self.rungs or self.rungs[0] < 1 or [*self.rungs] != sorted({*self.rungs})):
            raise ConfigError(f"--rungs is {list(self.rungs)}; give rising numbers of epochs, such as 4,12.")
        for what, rates in (("lr", self.lr), ("baseline-lr", self.baseline_lr)):
            if rates is not None and not (rates and all(0 < rate < float("inf") for rate in rates)):
                raise ConfigError(f"--{what} is {list(rates)}; give positive numbers, such as 3e-4,1e-3.")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ConfigError(f"--alpha is {self.alpha}; it must be a positive number, such as 32.")
        accuracy_tolerance(self.deciding.tolerance)
        if self.protocol == "published":
            # The notebook trains everything, on one split.
            object.__setattr__(self, "deciding", replace(self.deciding, plan="grid", rotate=False))
        elif self.deciding.curve is None:
            object.__setattr__(self, "deciding", replace(self.deciding, curve=True))

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds; of an adaptive plan at the most these."""
        return self.deciding.seeds(self.seeds)

    def settings(self) -> dict[str, Any]:
        """The complete settings as a file for --config has them: flag -> plain value."""
        return plain_settings(asdict(self))


ADDED: dict[str, Any] = {"optimiser": "adamw", "variant": ("lora",)}
"""Options that earlier versions lacked, with the value that does what these did: it is left out of settings, so that
their unfinished runs can be resumed."""


def plain_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Options as a file for --config has them: flag -> plain value, without those that are None.

    Examples:
        >>> plain_settings({"batch_size": 8, "seeds": (3,), "lr": None})
        {'batch-size': 8, 'seeds': [3]}
    """
    flat = {key: v for key, v in options.items() if key != "deciding"} | options.get("deciding", {})
    flat = {key: v for key, v in flat.items() if key not in ADDED or v != ADDED[key]}
    plain = {key.replace("_", "-"): list(v) if isinstance(v, tuple) else v for key, v in flat.items()}
    return {key: str(v) if hasattr(v, "__fspath__") else v for key, v in plain.items() if v is not None}
