"""Schedules against torch's own, for several adapters at once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from rankwise.train.schedules import SCHEDULES, Schedules

losses = st.lists(st.sampled_from([1.0, 0.99995, 0.9998, 0.9, 0.5, 1.2, math.inf, math.nan]), min_size=1, max_size=60)


def optimiser() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


@given(losses, losses)
def test_plateau_is_that_of_torch(first: list[float], second: list[float]) -> None:
    epochs = min(len(first), len(second))
    ours = Schedules(["plateau", "plateau"], [0, 0], [100, 100])
    optimisers = [optimiser(), optimiser()]
    theirs = [ReduceLROnPlateau(each, threshold=1e-4) for each in optimisers]
    for epoch in range(epochs):
        both = (first[epoch], second[epoch])
        ours.observe(torch.tensor(both, dtype=torch.float64))
        for scheduler, loss in zip(theirs, both, strict=True):
            scheduler.step(loss)
        expected = [each.param_groups[0]["lr"] for each in optimisers]
        # torch leaves a rate alone that would fall by less than 1e-8; there is no such floor here.
        if min(expected) > 1e-6:
            assert ours.factor(epoch).tolist() == pytest.approx(expected)


def test_cosine_is_that_of_torch() -> None:
    ours, each = Schedules(["cosine"], [0], [20]), optimiser()
    theirs = CosineAnnealingLR(each, T_max=20)
    for step in range(20):
        assert ours.factor(step).item() == pytest.approx(each.param_groups[0]["lr"], abs=1e-12)
        each.step()
        theirs.step()
    assert ours.factor(20).item() == pytest.approx(0, abs=1e-12)
    assert ours.factor(30).item() == pytest.approx(0, abs=1e-12), "it does not rise again"


def test_each_adapter_has_its_own_length() -> None:
    ours = Schedules(["cosine", "cosine"], [0, 0], [10, 20])
    torch.testing.assert_close(ours.factor(10), torch.tensor([0.0, 0.5], dtype=torch.float64), atol=1e-12, rtol=0)


def test_warm_up_rises_by_equal_steps_and_comes_before_any_schedule() -> None:
    ours = Schedules(["constant", "cosine", "constant"], [4, 4, 0], [8, 8, 8])
    factors = torch.stack([ours.factor(step) for step in range(6)], 1)
    assert factors[0].tolist() == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors[2].tolist() == [1.0] * 6
    cosine = Schedules(["cosine"], [0], [8])
    for step in range(6):
        assert factors[1, step].item() == pytest.approx(factors[0, step].item() * cosine.factor(step).item())


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_it_says_of_moving_is_true(name: str) -> None:
    ours = Schedules([name], [3], [10])
    for step in range(1, 10):
        if not ours.moves_each_step(step):
            assert torch.equal(ours.factor(step), ours.factor(step - 1))


@given(
    st.lists(st.tuples(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 5), st.booleans()), min_size=1, max_size=6)
)
def test_keep_leaves_the_others_as_they_would_be_alone(adapters: list[tuple[str, int, bool]]) -> None:
    names, warmup, stays = zip(*adapters, strict=True)
    mask = torch.tensor(stays)
    if not mask.any():
        return
    together = Schedules(names, warmup, [40] * len(names))
    alone = [Schedules([name], [steps], [40]) for name, steps in zip(names, warmup, strict=True)]
    for epoch in range(30):
        if epoch == 13:
            together.keep(mask)
            alone = [one for one, stay in zip(alone, stays, strict=True) if stay]
        expected = torch.cat([one.factor(epoch) for one in alone])
        assert torch.equal(together.factor(epoch), expected)
        loss = torch.ones(len(alone), dtype=torch.float64)
        together.observe(loss)
        for one in alone:
            one.observe(loss[:1])
