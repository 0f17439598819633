"""A small sweep that workers train, for the tests of each kind of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import LocalProcesses, Ray, Sweep, Training, sweep
from rankwise.pack.pack import Pack
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Message
from small_sweep import accuracy, loss, small_model, some_data


class Messages(list[str]):
    def on_event(self, event: object) -> None:
        if isinstance(event, Message):
            self.append(event.text)


def swept(out: Path, workers: LocalProcesses | Ray | None, **changed: Any) -> tuple[Sweep, list[str]]:
    """A sweep over two ranks in float64, and its messages."""
    messages = Messages()
    given: dict[str, Any] = {
        "lrs": [3e-3, 3e-2],
        "training": Training(epochs=3, batch_size=8),
        "seeds": 2,
        "rungs": [1],
        "plan": "grid",
        "every": CheckpointInterval(epochs=1),
        "metric": accuracy,
        "loss": loss,
    }
    train, validation, test = ((x.double(), y) for x, y in (some_data(40, 0), some_data(30, 1), some_data(20, 2)))
    found = sweep(
        small_model().double(),
        [1, 2],
        train=train,
        validation=validation,
        test=test,
        out=out,
        progress="quiet",
        observers=[messages],
        workers=workers,
        **given | changed,
    )
    return found, messages


def assert_alike(one: Sweep, other: Sweep) -> None:
    """Both come to the same within the rounding of float64, as they do in other packs."""
    assert {run.name: run.status for run in one.results.runs} == {run.name: run.status for run in other.results.runs}
    for run in one.results.runs:
        if run.status == "finished":
            for name, value in one.state(run.name).items():
                torch.testing.assert_close(value, other.state(run.name)[name], rtol=1e-10, atol=1e-10)


def begin_and_stop(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin the sweep in one process, and stop it in the middle."""
    steps, update = [0], Pack.update

    def stopping(*given: Any) -> Any:
        steps[0] += 1
        if steps[0] == 12:
            raise KeyboardInterrupt
        return update(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            swept(out, None)
