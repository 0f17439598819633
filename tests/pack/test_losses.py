"""Losses and metrics written for one adapter, applied to all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter

GROUPS = Groups([0, 1, 0], 2, torch.device("cpu"))
OUTPUTS = torch.linspace(-1, 1, 3 * 4 * 5).view(3, 4, 5)
BATCH = {"x": torch.zeros(2, 4, 7), "y": torch.arange(8).view(2, 4) % 5}


def expected() -> list[float]:
    return [F.cross_entropy(OUTPUTS[k], BATCH["y"][g]).item() for k, g in enumerate([0, 1, 0])]


def by_row(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch["y"], reduction="none")


def scalar(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch["y"])


def stubborn(outputs: Tensor, batch: Any) -> Tensor:
    """vmap can't take `.item()`."""
    return F.cross_entropy(outputs, batch["y"]) * (1.0 if outputs.sum().item() > -1e9 else 0.0)


@pytest.mark.parametrize("function", [by_row, scalar, stubborn])
def test_each_adapter_gets_its_own_loss(function: Any) -> None:
    per_adapter = PerAdapter(function, "loss")
    for _ in range(2):
        assert per_adapter.mean(OUTPUTS, BATCH, GROUPS).tolist() == pytest.approx(expected())
    assert bool(per_adapter.notes) == (function is stubborn)


def test_parts_of_the_batch_that_are_not_read_are_not_repeated() -> None:
    class Watched(Mapping[str, Tensor]):
        def __init__(self) -> None:
            self.read: list[str] = []

        def __getitem__(self, key: str) -> Tensor:
            self.read.append(key)
            return BATCH[key]

        def __iter__(self) -> Any:
            return iter(BATCH)

        def __len__(self) -> int:
            return len(BATCH)

    watched = Watched()
    PerAdapter(by_row, "loss").rows(OUTPUTS, watched, GROUPS)
    assert set(watched.read) == {"y"}


def test_tuples_are_read_by_place() -> None:
    def loss(outputs: Tensor, batch: Any) -> Tensor:
        _, y = batch
        return F.cross_entropy(outputs, y, reduction="none")

    values, _ = PerAdapter(loss, "loss").rows(OUTPUTS, (BATCH["x"], BATCH["y"]), GROUPS)
    assert values.mean(1).tolist() == pytest.approx(expected())


@pytest.mark.parametrize(
    ("function", "got"),
    [(lambda o, b: o, r"shape \(4, 5\)"), (lambda o, b: "1.0", "str"), (lambda o, b: o.sum(0), r"shape \(5,\)")],
)
def test_what_is_neither_a_scalar_nor_a_value_a_row_is_refused(function: Any, got: str) -> None:
    with pytest.raises(PackError, match=f"The metric returned {got} for a batch of 4 rows; it must return a scalar"):
        PerAdapter(function, "metric").rows(OUTPUTS, BATCH, GROUPS)


def alike(outputs: Tensor, batch: Any) -> Tensor:
    """In-batch contrastive: each row against all others."""
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")


def over_tokens(outputs: Tensor, batch: Any) -> Tensor:
    """A mean over the tokens of the whole batch, shared out among its rows."""
    return outputs.sum(1) / batch[1].sum()


def after_the_first(outputs: Tensor, batch: Any) -> Tensor:
    """A row's distance to the one before; the first has none."""
    return (outputs - outputs.roll(1, 0)).square().sum(1) * (torch.arange(len(outputs)) > 0)


def over_tokens_of_all_but_the_first(outputs: Tensor, batch: Any) -> Tensor:
    """As `over_tokens`, the first row having no token."""
    tokens = batch[1] - 1
    return outputs.sum(1) * tokens / tokens.sum().clamp(min=1)


@pytest.mark.parametrize("function", [alike, over_tokens, after_the_first, over_tokens_of_all_but_the_first])
def test_values_of_rows_that_depend_on_other_rows_are_refused_and_scalars_of_them_are_each_adapters_own(
    function: Any,
) -> None:
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 4, 5, generator=g)
    batch = (torch.zeros(1, 4), torch.tensor([[1, 2, 3, 4]]))
    groups = Groups([0, 0, 0], 1, torch.device("cpu"))
    with pytest.raises(PackError, match="rows have other values when they are alone"):
        PerAdapter(function, "loss").mean(outputs, batch, groups)
    scalar = PerAdapter(lambda outputs, batch: function(outputs, batch).mean(), "loss")
    alone = torch.stack([function(each, (batch[0][0], batch[1][0])).mean() for each in outputs])
    assert torch.allclose(scalar.mean(outputs, batch, groups), alone)


@pytest.mark.parametrize(
    "metric",
    [
        lambda o, b: (o.argmax(1) == b).numpy(),
        lambda o, b: np.float32((o.argmax(1) == b).float().mean()),
        lambda o, b: (np.asarray((o.argmax(1) == b).sum()), len(o)),
    ],
)
def test_numbers_of_numpy_are_numbers(metric: Any) -> None:
    outputs = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 0, 1, 2]])
    found = PerAdapter(metric, "metric").mean(outputs, labels, Groups([0, 0], 1, torch.device("cpu")))
    assert torch.allclose(found, (outputs.argmax(2) == labels).float().mean(1))


def test_complex_numbers_are_refused() -> None:
    metric = PerAdapter(lambda o, b: torch.view_as_complex(o), "metric")
    with pytest.raises(PackError, match="complex numbers of shape"):
        metric.mean(torch.zeros(1, 4, 2), torch.zeros(1, 4), Groups([0], 1, torch.device("cpu")))
