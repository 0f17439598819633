"""A number of a tensor's bits: what changes it, and what doesn't."""

import pytest
import torch

from rankwise.lora.base.checksum import checksum

KINDS = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]


def made(dtype, n=20_011):
    return torch.randint(2, (n,), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", KINDS)
def test_one_number_changes_it_wherever_it_is(dtype):
    for place in (0, 9_999, 20_010):
        tensor = made(dtype)
        before = checksum(tensor)
        tensor[place] = int(tensor[place].item() == 0)
        assert checksum(tensor) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.neg(),
        lambda t: t.flip(0),
        lambda t: t.roll(4096, 0),
        lambda t: t.index_copy(0, torch.tensor([3, 15_000]), t[[15_000, 3]]),
        lambda t: t * 1.0000001,
    ],
)
def test_all_numbers_changed_or_moved_change_it(change):
    tensor = torch.randn(20_011, generator=torch.Generator().manual_seed(0))
    assert checksum(change(tensor)) != checksum(tensor)


def test_it_is_of_the_numbers_wherever_they_lie():
    wide = torch.randn(30, 1_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    for view in (wide.mT, wide[1:, 1:], wide[:, ::3]):
        assert checksum(view) == checksum(view.clone())
    assert checksum(torch.empty(0)) == 0
    assert checksum(torch.tensor(1.5)) == checksum(torch.tensor(1.5))
    assert checksum(torch.tensor(1.5)) != checksum(torch.tensor(1.25))
