"""Data sets of every form, and the order in which a seed reads them."""

from typing import Any

import pytest
import torch

from rankwise.errors import DataError
from rankwise.pack.batches import mapped
from rankwise.train.data.feed import random_order
from rankwise.train.data.tensors import count_rows, tensors_of

ROWS, MORE = torch.arange(6), torch.arange(12).view(6, 2)
FORMS = [ROWS, (ROWS, MORE), [ROWS, MORE], {"x": MORE, "labels": ROWS}]


@pytest.mark.parametrize("data", FORMS)
def test_rows_are_counted_and_picked_in_every_form(data: Any) -> None:
    assert count_rows(data, "training") == 6
    picked = mapped(data, lambda t: t[[4, 1]])
    for before, after in zip(tensors_of(data), tensors_of(picked), strict=True):
        assert torch.equal(after, before[[4, 1]])
    assert not isinstance(data, dict) or picked.keys() == data.keys()


@pytest.mark.parametrize("data", [(ROWS, MORE[:5]), {"x": ROWS, "y": MORE[:1]}, torch.zeros(0, 3), ()])
def test_unequal_and_empty_data_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match=r"tensors of the training data have \[.*\] rows; all must have the same"):
        count_rows(data, "training")


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    data = torch.zeros(50, 1)
    order = random_order(data, [0, 7], 3, 8)
    assert torch.equal(order[1], random_order(data, [7], 3, 16)[0])
    assert torch.equal(order.sort(dim=1).values, torch.arange(50).expand(2, 50)), "every row once"
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order, random_order(data, [0, 7], 4, 8))
