"""Puts runs together for the display: one row a configuration and learning rate, whatever the number of seeds."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean as mean

from rankwise.show.live import RUNNING, Progress, ProgressRow
from rankwise.train.outcome import Outcome, Point

BETWEEN = 1.0
"""Seconds between two looks at how far a pack is within an epoch."""


class ProgressByConfiguration:
    """Tells a `Progress` how the runs of a sweep go.

    Args:
        progress: Where it is shown.
        runs: Run -> (configuration, rank or None, learning rate).
        totals: Run -> steps at the most.
        metric: What the metric is called.
    """

    def __init__(
        self,
        progress: Progress,
        runs: Mapping[str, tuple[str, int | None, float]],
        totals: Mapping[str, int],
        metric: str,
    ) -> None:
        self._progress = progress
        self._key = {run: f"{configuration} {lr:g}" for run, (configuration, _, lr) in runs.items()}
        self._total = totals
        self._steps: dict[str, int] = {}
        self._looked = time.monotonic()
        self._last: dict[str, dict[str, Point]] = {key: {} for key in self._key.values()}
        self._statuses: dict[str, list[str]] = {key: [] for key in self._key.values()}
        self._members = {key: [run for run, k in self._key.items() if k == key] for key in self._last}
        rows = [
            ProgressRow(key, runs[names[0]][0], *runs[names[0]][1:], len(names)) for key, names in self._members.items()
        ]
        progress.start(f"Training {_counted(len(runs), len(rows))}", rows, metric)

    def points(self, points: Sequence[Point]) -> None:
        """Take in a pack's epoch."""
        for point in points:
            self._last[self._key[point.run]][point.run] = point
            self._steps[point.run] = point.step
        self._tell_all([point.run for point in points])

    def mark_resumed(self) -> None:
        """What has been taken in so far was done before an interruption."""
        self._progress.mark_resumed()

    def report_step(self, runs: Callable[[], Sequence[str]], step: int) -> None:
        """Take in that a pack has come to a step; called after every one, heeded once a second."""
        now = time.monotonic()
        if now - self._looked >= BETWEEN:
            self._looked = now
            self._steps |= dict.fromkeys(runs(), step)
            self._tell_all(runs())

    def ended(self, outcome: Outcome) -> None:
        """Take in the end of a run."""
        key = self._key[outcome.name]
        self._statuses[key].append(outcome.status)
        self._tell(key)

    def _tell_all(self, runs: Sequence[str]) -> None:
        with self._progress.batched():
            for key in dict.fromkeys(self._key[run] for run in runs):
                self._tell(key)

    def _tell(self, key: str) -> None:
        last, statuses = list(self._last[key].values()), self._statuses[key]
        # The worst of the ends is the row's: a diverged seed is what the user must see.
        status = min(statuses) if len(statuses) == len(self._members[key]) else RUNNING
        # A run may end before its first point.
        steps = {run: self._steps[run] for run in self._members[key] if run in self._steps}
        self._progress.update(
            key,
            max(steps.values(), default=0),
            max((self._total[run] for run in steps), default=None),
            mean([point.validation_loss for point in last]) if last else None,
            mean([point.metric for point in last]) if last else None,
            status,
        )


def _counted(runs: int, rows: int) -> str:
    """How many runs, and of how many configurations where these are fewer.

    Examples:
        >>> _counted(1, 1), _counted(4, 4), _counted(3, 1), _counted(6, 2)
        ('1 run', '4 runs', '3 runs of 1 configuration', '6 runs of 2 configurations')
    """
    counted = f"{runs} run{'' if runs == 1 else 's'}"
    return counted if runs == rows else f"{counted} of {rows} configuration{'' if rows == 1 else 's'}"
