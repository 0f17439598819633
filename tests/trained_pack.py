"""Runs trained together in one pack, each handed out as soon as it is done."""

from collections.abc import Callable, Iterator
from typing import Any

from rankwise.train.loop import PackTraining
from rankwise.train.outcome import EpochPoint, Outcome


def train_pack(
    *args: Any, on_epoch: Callable[[list[EpochPoint]], Any] = lambda points: None, **given: Any
) -> Iterator[Outcome]:
    """Yield the outcomes in the order in which runs end; arguments as `PackTraining` takes them."""
    training = PackTraining(*args, **given)
    while not training.done:
        epoch = training.advance()
        assert epoch is not None
        on_epoch(epoch.points)
        yield from epoch.ended
