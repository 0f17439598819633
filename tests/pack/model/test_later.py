"""Counts that modules keep in plain attributes: refused where outputs depend on them, however late."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack

Counts = Callable[[Any, Tensor], Tensor]


class Counting(nn.Module):
    """Two layers, and something between them that counts its calls."""

    def __init__(self, between: Counts) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.steps, self.rate, self.flag = 0, 1.0, True
        self.state = SimpleNamespace(seen={"steps": [0, 0]})
        self.history: list[float] = []
        self._between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._between(self, self.fc(x)))


def attach(between: Counts) -> Counting:
    model = Counting(between)
    lora = LoRAConfig(r=1, target_modules=["fc"])
    pack = Pack(model, [Member(name="a", lora=lora)], lambda o, batch: F.cross_entropy(o, batch[1]))
    with pack.attached((torch.randn(4, 4), torch.arange(4) % 3), training=True):
        return model


def counts(model: Any, h: Tensor) -> Tensor:
    model.steps += 1
    return h


def later(model: Any, h: Tensor) -> Tensor:
    return counts(model, h) * (1.0 if model.steps < 300 else 0.5)


def now_and_then(model: Any, h: Tensor) -> Tensor:
    return counts(model, h) * (0.5 if model.steps % 100 == 0 else 1.0)


def cools(model: Any, h: Tensor) -> Tensor:
    model.rate *= 1 - 1e-7
    return h * model.rate


def inside(model: Any, h: Tensor) -> Tensor:
    model.state.seen["steps"][1] += 1
    return h * (1.0 if model.state.seen["steps"][1] < 50 else 2.0)


def remembers(model: Any, h: Tensor) -> Tensor:
    model.history.append(1.0)
    return h / (1 + len(model.history) // 500)


def only_in_eval(model: Any, h: Tensor) -> Tensor:
    if model.training:
        return counts(model, h)
    return h * (1.0 if model.steps < 300 else 0.5)


def runs_out(model: Any, h: Tensor) -> Tensor:
    return counts(model, h) * ([1.0] * 40)[model.steps]


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (later, "steps"),
        (now_and_then, "steps"),
        (cools, "rate"),
        (inside, "state.seen.steps.1"),
        (remembers, "len(history)"),
        (only_in_eval, "steps"),
        (runs_out, "steps"),
    ],
)
def test_a_count_on_which_outputs_depend_late_is_refused(between: Counts, name: str) -> None:
    with pytest.raises(PackError) as raised:
        attach(between)
    assert f'The outputs depend on "{name}", which each forward pass changes' in str(raised.value)


def test_a_count_that_nothing_depends_on_is_left_alone() -> None:
    assert 0 < attach(counts).steps < 100


def test_a_number_that_is_written_anew_in_each_pass_is_no_count() -> None:
    def notes(model: Any, h: Tensor) -> Tensor:
        model.steps, model.rate = len(h), float(h.detach().sum())
        return h

    attach(notes)
