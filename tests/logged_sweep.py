"""A sweep's events for loggers whose packages a test stands in for."""

from rankwise.train.events import Ended, EpochEnded, Event, Observer, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import EpochPoint, Outcome

RUNS = tuple(RunInfo(f"r{r}-s0", f"r{r}", f"r = {r}", "lora", r, 0.1, 0, 10 * r, 4) for r in (1, 2))
NAMES = tuple(run.name for run in RUNS)

LOSSES, RATES = ((1.0, 2.0), (0.5, 3.0)), ((0.1, 0.2), (0.3, 0.4))

WRITTEN = {
    "r1-s0": [
        (1, {"train/loss": 1.0, "train/lr": 0.1}),
        (2, {"train/loss": 0.5, "train/lr": 0.3}),
        (2, {"train/gradient_norm": 3.0, "validation/loss": 0.6, "validation/accuracy": 0.9}),
    ],
    "r2-s0": [(1, {"train/loss": 2.0, "train/lr": 0.2}), (2, {"train/loss": 3.0, "train/lr": 0.4})],
}
"""Run -> steps and numbers."""


def tell(logger: Observer, verdict: str | None = "shown") -> None:
    """The first run is interrupted, the second diverges."""
    events: tuple[Event, ...] = (
        Started(RUNS, "accuracy"),
        Stepped(NAMES, 2, LOSSES, RATES),
        EpochEnded((EpochPoint(NAMES[0], 2, 0.75, 0.6, 0.9, 0.3, 3.0),)),
        RunEnded(Outcome(NAMES[1], {}, "diverged", "", 2, 2, 1, 0.1)),
        Ended(verdict, "" if verdict is None else "r = 1 does it"),
    )
    for event in events:
        logger.on_event(event)
