"""How many numbers the batches of a data set have, as a model is given them."""

import torch
from torch import Tensor

from rankwise.train.data.feed import SIZES, Feed


def cut(batch: Tensor) -> Tensor:
    """Without the columns that no row fills."""
    return batch[..., : int((batch > 0).sum(-1).max())]


def test_sizes_are_those_of_the_batches_that_pass() -> None:
    data, feed = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]]), Feed(prepare=cut)
    assert feed.size_of(data, torch.tensor([[0, 2]])) == 2
    assert feed.size_of(data, torch.tensor([[0, 2], [1, 2]])) == 8, "two seeds' batches have one width"
    assert feed.sizes(data, [torch.tensor([[0, 2]]), torch.tensor([[1, 3]])]) == [2, 6]


def test_of_many_steps_some_from_all_over_are_looked_at() -> None:
    looked: list[int] = []
    feed = Feed(prepare=lambda batch: looked.append(int(batch)) or batch)
    feed.sizes(torch.arange(1000), [torch.tensor([[i]]) for i in range(1000)])
    assert SIZES / 2 < len(looked) <= SIZES
    assert looked[0] < 20
    assert looked[-1] > 980
