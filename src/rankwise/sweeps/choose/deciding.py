"""How a sweep decides: what it asks of an answer, and how it plans its runs. Light: the command line reads it."""

from dataclasses import dataclass

from rankwise.errors import ConfigError, option, suggest
from rankwise.sweeps.choose.rule import Rule, parse_tolerance

PLANS = ("auto", "grid")

MOST_SEEDS = 16
"""Seeds of an adaptive plan at most, unless the user says otherwise."""

GRID_SEEDS = 3
"""Seeds of a grid, unless the user says otherwise."""

LOOKS = 10
"""As how many independent looks the looks of an adaptive plan count, after each seed and at several sizes, where it is
strict; simulated (`benchmarks/answer.py synthetic`)."""

ROTATE_FROM = 4
"""Seeds from which each of them validates on its own rows, where the validation data is not given."""


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """How a sweep decides.

    Args:
        tolerance: How much worse than the reference is good enough: "1%", "0.5 points", or 0.02 in the metric's unit.
            [default: 1% of an accuracy, and at most 5% of its gain over the base; of a loss 5% of that gain]
        confidence: Probability at which something counts as shown.
        strict: Keep the chance of naming a size that lies just outside at 1 - confidence in the worst case: test sizes
            from the largest down, stop at the first that fails, and in an adaptive plan ask each of its many looks for
            a tenth of that chance. It takes more runs.
        plan: "auto" trains only what the decision needs, "grid" everything.
        curve: Train every size in an adaptive plan, at least with the starting seeds. [default: where it is cheap]
        max_runs: Training runs of an adaptive plan at most, the search included.
        max_minutes: An adaptive plan begins nothing new after so many minutes.
        max_parameters: Leave adapters with more trainable parameters out of the decision.
        rotate: Give each seed validation examples of its own, cut off the training data. [default: from 4 seeds on]
        compressed: Cut adapters of the largest rank trained to every smaller rank, and say which adapter to ship, cut
            ones included. [default: yes, but where the metric needs answers to be written]
        squeeze_steps: Train each adapter that was cut this many steps further, and as many the adapters that were
            trained at its rank, for comparison.

    Raises:
        ConfigError: A value can't be used.
    """

    tolerance: str | float | None = None
    confidence: float = 0.95
    strict: bool = False
    plan: str = "auto"
    curve: bool | None = None
    max_runs: int | None = None
    max_minutes: float | None = None
    max_parameters: int | None = None
    rotate: bool | None = None
    compressed: bool | None = None
    squeeze_steps: int | None = None

    def __post_init__(self) -> None:
        if self.plan not in PLANS:
            raise ConfigError(
                f'{option("plan")} is "{self.plan}"; give "auto" (trains what the decision needs) or "grid" (trains '
                f"everything)."
                f"{suggest(self.plan, PLANS)}"
            )
        for name in ("max_runs", "max_minutes", "max_parameters"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{option(name)} is {value}; give a positive number, or leave it out.")
            if value is not None and self.plan == "grid":
                raise ConfigError(f"{option(name)} has no effect in a grid, which trains everything; leave it out.")
        if self.squeeze_steps is not None and self.squeeze_steps < 1:
            raise ConfigError(
                f"{option('squeeze_steps')} is {self.squeeze_steps}; give a number of steps of at least 1, or leave it "
                "out."
            )
        if self.squeeze_steps is not None and self.compressed is False:
            raise ConfigError(
                f"{option('squeeze_steps')} trains adapters that were cut, and compressed ones are to be left out; "
                "leave out one of the two."
            )
        self.rule(True)

    def rule(self, higher_is_better: bool) -> Rule:
        """What is asked of an answer by a metric."""
        confidence = self.confidence
        if self.strict and self.plan == "auto":
            confidence = 1 - (1 - confidence) / LOOKS
        return Rule(parse_tolerance(self.tolerance, higher_is_better), higher_is_better, confidence, self.strict)

    def seeds(self, given: tuple[int, ...] | None) -> tuple[int, ...]:
        """The seeds: those given, else as many as the plan takes at most."""
        return given if given is not None else tuple(range(MOST_SEEDS if self.plan == "auto" else GRID_SEEDS))

    def rotates(self, n_seeds: int) -> bool:
        """Whether each seed validates on its own rows, where the data allows it."""
        return n_seeds >= ROTATE_FROM if self.rotate is None else self.rotate
