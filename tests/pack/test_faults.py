"""A function that raises on one adapter's outputs leaves the others alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.counts import CountMetric
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter

CPU = torch.device("cpu")
GROUPS = Groups([0, 1, 0], 2, CPU)
BATCH = {"y": torch.arange(8).view(2, 4) % 5}


def some_outputs(*large: int) -> Tensor:
    """Of three adapters; those of some are too large for `strict`."""
    outputs = torch.linspace(-1, 1, 3 * 4 * 5).view(3, 4, 5).clone()
    outputs[list(large)] *= 100
    return outputs.requires_grad_()


def strict(function: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Any], Any]:
    def checked(outputs: Tensor, batch: Any) -> Any:
        if outputs.abs().max() > 10:
            raise ValueError("outputs\n are too large.")
        return function(outputs, batch)

    return checked


def by_row(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch["y"], reduction="none")


def scalar(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch["y"])


def sums(outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(outputs, batch["y"], reduction="sum"), torch.tensor(4.0)


@pytest.mark.parametrize("function", [by_row, scalar, sums])
@pytest.mark.parametrize("kind", ["mean", "totals", "rows"])
@pytest.mark.parametrize("bad", [0, 1], ids=["the first", "another"])
def test_the_others_have_their_values_and_gradients(function: Any, kind: str, bad: int) -> None:
    loss = PerAdapter(strict(function), "loss", piece=4, spare=True)
    outputs = some_outputs(bad)
    values, weights = outputs.detach().clone().requires_grad_(), PerAdapter(function, "loss", piece=4)
    ours, theirs = (getattr(f, kind)(x, BATCH, GROUPS) for f, x in ((loss, outputs), (weights, values)))
    ours, theirs = ((x[0] / (1 if x[1] is None else x[1])) if isinstance(x, tuple) else x for x in (ours, theirs))
    others = [k for k in range(3) if k != bad]
    torch.testing.assert_close(ours[others], theirs[others])
    assert ours[bad].isnan().all()
    assert list(loss.failed) == [bad]
    assert "the loss raised ValueError: outputs are too large (test_faults.py, line " in loss.failed[bad]
    ours.sum().backward()
    theirs.sum().backward()
    assert outputs.grad is not None
    assert values.grad is not None
    torch.testing.assert_close(outputs.grad[others], values.grad[others])


def test_counts_and_parts_on_which_it_raises_for_the_only_adapter() -> None:
    def counts(outputs: Tensor, batch: Any) -> Tensor:
        right = (outputs.argmax(-1) == batch["y"]).float()
        return torch.stack([right, torch.ones_like(right)], -1)

    one, group = some_outputs()[:1].detach(), Groups([0], 1, CPU)
    batch = {"y": BATCH["y"][:1]}
    for function in (CountMetric(strict(counts), lambda s: s[..., 0] / s[..., 1]), strict(by_row), strict(sums)):
        metric = PerAdapter(function, "metric", piece=4, spare=True)
        parts = [metric.rows(outputs, batch, group) for outputs in (one * 100, one, one * 100)]
        assert metric.joined(parts).shape == (1, 12)
        assert metric.joined(parts).isnan().any()
        assert metric.joined(parts[:1]).isnan().all()
        assert metric.joined(parts[1:2]).isfinite().all()
        assert list(metric.failed) == [0]


def test_outputs_that_are_no_numbers_are_a_reason_of_each() -> None:
    outputs = some_outputs().detach() * torch.tensor([torch.nan, torch.inf, torch.nan]).view(3, 1, 1)

    def finite(outputs: Tensor, batch: Any) -> Tensor:
        if not outputs.isfinite().all():
            raise RuntimeError("NaN")
        return by_row(outputs, batch)

    metric = PerAdapter(finite, "metric", spare=True)
    assert metric.mean(outputs, BATCH, GROUPS).isnan().all()
    assert list(metric.failed) == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "spare", "large"),
    [
        (ValueError("all"), True, [0, 1, 2]),
        (ValueError("nobody is spared"), False, [1]),
        (PackError("a refusal"), True, [1]),
        (torch.OutOfMemoryError("no room"), True, [1]),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True, [1]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_no_adapter_is_the_reason_of_is_raised(error: Exception, spare: bool, large: list[int]) -> None:
    def raising(outputs: Tensor, batch: Any) -> Tensor:
        if outputs.abs().max() > 10:
            raise error
        return by_row(outputs, batch)

    loss = PerAdapter(raising, "loss", spare=spare)
    with pytest.raises(type(error), match=str(error)):
        loss.mean(some_outputs(*large), BATCH, GROUPS)
    assert loss.failed == {}
