"""The units that a driver has assigned to workers, and the workers that died."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from rankwise.errors import ConfigError
from rankwise.sweeps.run.units.context import PendingUnit

STARTING = -1
"""In place of the number of a unit: the start of a worker."""

MOST_DEATHS = 10
"""Workers that may die over one unit while it gets no further; more are no accident."""


@dataclass
class InHand:
    """The units and workers of a stage's driver.

    Args:
        queue: Units that no worker has.
        running: A worker's stream of events -> the worker and its unit.
        starting: A worker's sign that it has started -> the worker.
        deaths: How many workers have died, by the number of their unit, since it last got further.
        failures: How many have ended with an error, likewise, in all.
        steps: The furthest step of each unit.
        short: How many of them had too little memory.
        looked: When the cluster was last asked how many workers it has room for.
        limit: Its answer.
        waits: Whether the lack of room was reported.
    """

    queue: deque[PendingUnit]
    running: dict[Any, tuple[Any, PendingUnit]] = field(default_factory=dict)
    starting: dict[Any, Any] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)
    steps: Counter[int] = field(default_factory=Counter)
    short: Counter[int] = field(default_factory=Counter)
    looked: float = 0.0
    limit: int = 1
    waits: bool = False

    def progress(self, events: Any, step: int) -> None:
        """Record a worker's step; where none of its unit's workers had come so far, earlier deaths are forgiven."""
        number = self.running[events][1].unit.number
        if step > self.steps[number]:
            self.steps[number], self.deaths[number] = step, 0

    def bury(self, events: Any, error: Exception) -> PendingUnit | None:
        """Record a worker's death; return its unit, or None.

        Raises:
            ConfigError: Too many have died over the same.
        """
        starts = events in self.starting
        number = STARTING if starts else self.running[events][1].unit.number
        self.deaths[number] += 1
        if self.deaths[number] > MOST_DEATHS:
            raise ConfigError(
                f"{self.deaths[number]} workers died over {'their start' if starts else f'unit {number}'}, the last "
                f"one with: {' '.join(str(error).split())[:300]}"
            ) from error
        self.looked = 0.0
        if starts:
            del self.starting[events]
            return None
        return self.running.pop(events)[1]
