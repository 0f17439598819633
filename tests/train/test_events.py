"""Events are plain, and observers hear each of them once."""

import pickle
from dataclasses import fields

import pytest
import torch

from rankwise.train.events import (
    Ended,
    EpochEnded,
    Event,
    Message,
    Observer,
    Observers,
    Resumed,
    RunEnded,
    RunInfo,
    Started,
    Stepped,
)
from rankwise.train.outcome import EpochPoint, Outcome

POINT = EpochPoint("a", 3, 1.0, 0.5, 0.9, 0.1, 2.0)
OUTCOME = Outcome("a", {"0.A": torch.eye(2)}, "finished", None, 3, 3, 1, 0.5)
EVENTS: list[Event] = [
    Started((RunInfo("a", "r2", "r = 2", "lora", 2, 0.1, 0, 8, 3),), "accuracy"),
    Resumed((POINT,), (OUTCOME,)),
    Stepped(("a",), 2, ((1.0,), (0.5,)), ((0.1,), (0.1,))),
    EpochEnded((POINT,), ("a note",)),
    RunEnded(OUTCOME),
    Message("hello"),
    Ended("shown", "r = 2 does it"),
]


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_can_be_pickled_and_not_changed(event: Event) -> None:
    again = pickle.loads(pickle.dumps(event))
    assert str(again) == str(event)
    with pytest.raises(AttributeError):
        setattr(event, fields(event)[0].name, None)


def test_every_observer_hears_every_event_in_order() -> None:
    one, other = Heard(), Heard()
    assert isinstance(one, Observer)
    with Observers([one, other]) as observers:
        for event in EVENTS:
            observers.on_event(event)
    assert one.events == other.events == EVENTS, "the end is not told twice"


def test_an_error_ends_the_observers_too() -> None:
    heard = Heard()

    def interrupted() -> None:
        with Observers([heard]) as observers:
            observers.message("hello")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert heard.events == [Message("hello"), Ended()]


def test_an_observer_that_cant_write_hears_no_more() -> None:
    class Full(Heard):
        def on_event(self, event: Event) -> None:
            super().on_event(event)
            if isinstance(event, EpochEnded):
                raise OSError(28, "No space left on device")

    full, heard = Full(), Heard()
    with Observers([full, heard]) as observers:
        for event in EVENTS:
            observers.on_event(event)
    assert full.events == EVENTS[:4]
    lost = Message("Full can't write (No space left on device); training continues without it.")
    assert [event for event in heard.events if event != lost] == EVENTS
    assert lost in heard.events


def test_other_errors_of_an_observer_are_faults() -> None:
    class Faulty(Heard):
        def on_event(self, event: Event) -> None:
            raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        Observers([Faulty()]).message("hello")
