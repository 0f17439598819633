"""Keyed numbers: the same in any pack, order and part; uniform; of small draws for several steps at a time."""

from functools import partial

import pytest
import torch
from torch import Tensor

from rankwise.pack.noise.keyed import dropout_mask
from rankwise.pack.noise.uniform import MANY, CoarseNumbers, uniform

CPU = torch.device("cpu")


def classes_are_uniform(places: Tensor) -> bool:
    """Whether 16 classes of as many numbers, by their high and by their low bits, are about as large: chi-squared with
    15 degrees of freedom is over 37.7 in one of a thousand seeds."""
    counts = [part.flatten().bincount(minlength=16).double() for part in (places >> 12, places & 15)]
    expected = places.numel() / 16
    assert all(len(one) == 16 for one in counts)
    return all(float(((one - expected) ** 2 / expected).sum()) < 37.7 for one in counts)


def correlation(flat: Tensor, lag: int) -> float:
    return abs(float(torch.corrcoef(torch.stack([flat[:-lag], flat[lag:]]))[0, 1]))


@pytest.mark.parametrize(("coarse", "width"), [(False, 5), (True, 5), (True, MANY // 9 + 2)])
def test_noise_of_a_part_of_a_batch_is_that_of_the_whole(coarse: bool, width: int) -> None:
    draw = partial(uniform, total=9, shape=(width,), device=CPU, coarse=coarse)
    whole, start, end = (draw(0, "fc", 0, 3, slice(*rows)) for rows in ((0, 9), (0, 4), (4, 9)))
    assert torch.equal(whole, torch.cat([start, end]))
    others = [draw(*key, slice(0, 4)) for key in ((1, "fc", 0, 3), (0, "fc", 1, 3), (0, "fc", 0, 4))]
    assert not any(torch.equal(start, other) for other in others)


def test_sixteen_bits_are_uniform_and_independent_of_their_neighbours() -> None:
    u = uniform(0, "fc", 0, 3, slice(0, 1001), 1001, (999,), CPU, coarse=True)
    assert (u.dtype, u.shape) == (torch.int16, (1001, 999))
    places = u.long() + 2**15
    assert classes_are_uniform(places)
    # The four quarters of a draw and draws beside each other: correlations of 10^6 pairs have a deviation of 10^-3.
    flat = u.flatten().double()
    for lag in (1, 2, 3, 4, 624):
        assert correlation(flat, lag) < 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_of_sixteen_bits_are_those_of_their_numbers(dtype: torch.dtype) -> None:
    bits = uniform(0, "fc", 0, 3, slice(0, 64), 64, (999,), CPU, coarse=True)
    assert bits.dtype == torch.int16
    u = (bits.double() + 2**15) / 2**16
    for p in (0.1, 0.25, 1 / 3, 0.5, 0.999, 1 - 1e-6, 1.0):
        mask = dropout_mask(bits.clone(), p, dtype)
        wanted = torch.zeros(64, 999, dtype=dtype) if p == 1 else (u >= p).to(dtype) / (1 - p)
        if p < 0.999:
            assert torch.equal(mask, wanted)
            assert float((mask == 0).double().mean()) == pytest.approx(p, abs=1e-2)
        else:
            assert float((mask == 0).double().mean()) > 0.99
        assert torch.equal(dropout_mask(bits.clone(), torch.full((64, 1), min(p, 0.9)), dtype) > 0, u >= min(p, 0.9))


def step_of(numbers: CoarseNumbers, step: int, seeds: tuple[int, ...] = (0,), rows: slice = slice(0, 64)) -> Tensor:
    return numbers.of([*seeds], "fc", 0, step, rows, 64, (60,))


def test_small_draws_hang_on_their_key_alone() -> None:
    """In any order of steps, beside any seeds, in parts, after draws of other sizes."""
    kept = CoarseNumbers()
    whole = {step: step_of(kept, step, (3, 0, 5)) for step in (0, 1, 7, 8, 9, 40)}
    for step in (40, 9, 1, 8, 0, 7):
        alone = step_of(CoarseNumbers(), step)
        assert torch.equal(whole[step][1:2], alone)
        kept.of([0, 4], "fc", 0, step, slice(0, 7), 7, (3,))
        kept.of([0, 4], "fc", 0, step, slice(0, MANY), MANY, ())
        parts = [step_of(kept, step, (0,), slice(*of)) for of in ((0, 5), (5, 64))]
        assert torch.equal(torch.cat(parts, 1), alone)
    others = [kept.of([0], *key, slice(0, 64), 64, (60,)) for key in (("fc", 1, 0), ("up", 0, 0))]
    different = [*whole.values(), *(whole[0].roll(1, 0),), *others]
    assert len({tuple(one[0].flatten().tolist()) for one in different}) == len(different)


@pytest.mark.parametrize("shape", [(), (1,), (60,), (3, 80)])
def test_small_draws_are_uniform_and_independent_from_step_to_step(shape: tuple[int, ...]) -> None:
    numbers, total = CoarseNumbers(), 64
    u = torch.stack([numbers.of([0, 1], "fc", 0, step, slice(0, total), total, shape) for step in range(200)])
    assert u.dtype == torch.int16
    assert u.shape == (200, 2, total, *shape)
    assert classes_are_uniform(u.long() + 2**15)
    n = u[0, 0].numel()
    flat = u[:, 0].flatten().double()
    # A correlation of this many pairs has a deviation of 1 / sqrt(pairs).
    for lag in (1, 4, n, 2 * n, 8 * n):
        assert correlation(flat, lag) < 4.5 * len(flat) ** -0.5
    assert abs(float(torch.corrcoef(u.transpose(0, 1).reshape(2, -1).double())[0, 1])) < 4.5 * len(flat) ** -0.5


def test_what_is_kept_is_no_more_than_the_last_steps() -> None:
    numbers = CoarseNumbers()
    for step in range(100):
        for rows in range(1, 64):
            numbers.of([0, 1], "fc", 0, step, slice(0, rows), rows, (200,))
    kept = [tensor for _, _, tensors in numbers._kept.values() for tensor in tensors]  # pyright: ignore[reportPrivateUsage]
    # Of two seeds in each of five sizes.
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == 5 * 2 * 2**16
