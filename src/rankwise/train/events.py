"""Events of a sweep in training, and their observers.

An event is a frozen dataclass of plain values and tensors, so it can be pickled and sent from one machine to another.
An observer takes events and does one thing with them: a table in a terminal, a log, a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, final, runtime_checkable

from rankwise.train.outcome import EpochPoint, Outcome


@dataclass(frozen=True)
class RunInfo:
    """One run, as observers see it.

    Args:
        name: For example "r8-lr0.001-s0"; unique in a sweep.
        configuration: What the run repeats, whatever its learning rate and seed: "r8", "full".
        label: The configuration in words.
        method: "lora", "full" or "head".
        r: Rank; None unless the method is "lora".
        lr: Learning rate.
        seed: Its seed.
        parameters: Trainable parameters.
        steps: Optimiser steps, at most.
    """

    name: str
    configuration: str
    label: str
    method: str
    r: int | None
    lr: float
    seed: int
    parameters: int
    steps: int


@dataclass(frozen=True)
class Started:
    """Runs begin to train, or a resumed sweep takes them up again. A sweep of several stages starts several times.

    Args:
        runs: All runs of the stage.
        metric: What the metric is called.
    """

    runs: tuple[RunInfo, ...]
    metric: str


@dataclass(frozen=True)
class Resumed:
    """The progress of the runs of the last `Started` before an interruption; loggers have it already.

    Args:
        points: Every epoch's.
        ended: The runs that had ended.
    """

    points: tuple[EpochPoint, ...]
    ended: tuple[Outcome, ...]


@dataclass(frozen=True)
class Stepped:
    """The steps that a pack has taken since the last event of this kind: about a second's.

    Args:
        runs: Those in training.
        step: Number of the last step; the first of a run is 1.
        losses: Training loss of each run, one row a step, the last row that of `step`.
        rates: Learning rates, likewise.
    """

    runs: tuple[str, ...]
    step: int
    losses: tuple[tuple[float, ...], ...]
    rates: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch: its last steps, a point for each adapter in it, and the runs that ended with it."""

    stepped: Stepped
    points: list[EpochPoint]
    ended: list[Outcome]


@dataclass(frozen=True)
class EpochEnded:
    """A pack has passed over its training data once more, and was validated.

    Args:
        points: One for each run that took part.
        notes: What the user should know of how the pack runs, for the results.
    """

    points: tuple[EpochPoint, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunEnded:
    """A run has come to its end, of whatever kind."""

    outcome: Outcome


@dataclass(frozen=True)
class Message:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The sweep is over; nothing follows.

    Args:
        verdict: "shown", "nothing_smaller", "no_gain" or "undecided"; None where there is no answer.
        words: The answer in words; empty where there is none.
    """

    verdict: str | None = None
    words: str = ""


Event = Started | Resumed | Stepped | EpochEnded | RunEnded | Message | Ended


@runtime_checkable
class Observer(Protocol):
    """Takes events as they happen, in the process that runs the sweep."""

    def on_event(self, event: Event) -> None:
        """Handle an event; training waits for this method, so it should be quick."""
        ...


@final
class Observers:
    """Several observers as one, best in a `with` block, whose end is the last event whatever happened.

    An observer that can't write (`OSError`) gets no more events, and the others get a message; training continues.

    Args:
        observers: In the order in which they hear of an event.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)
        self._over = False

    def on_event(self, event: Event) -> None:
        """Hand an event to every observer."""
        self._over = self._over or isinstance(event, Ended)
        for observer in [*self._observers]:
            try:
                observer.on_event(event)
            except OSError as error:
                self._observers.remove(observer)
                why = error.strerror or str(error)
                self.message(f"{type(observer).__name__} can't write ({why}); training continues without it.")

    def message(self, text: str) -> None:
        """Send a message to the user."""
        self.on_event(Message(text))

    def __enter__(self) -> "Observers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.on_event(Ended())
