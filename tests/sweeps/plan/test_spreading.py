"""Packs cut for several workers."""

import random
from itertools import chain

import pytest

from rankwise.sweeps.plan.spreading import spread

Run = tuple[int, int]
"""Its rank, and its seed."""


def cut(packs: list[list[Run]], n: int) -> list[list[Run]]:
    return spread(packs, n, lambda run: run[0], lambda run: run[1])


@pytest.mark.parametrize("number", range(20))
def test_every_run_trains_once(number: int) -> None:
    draw = random.Random(number)
    packs = [
        [
            (r, s)
            for r in sorted(draw.sample((1, 2, 4, 8, 16, 64), draw.randint(1, 6)))
            for s in range(draw.randint(1, 5))
        ]
        for _ in range(draw.randint(1, 4))
    ]
    n = draw.randint(1, 9)
    found = cut(packs, n)
    assert [*chain(*found)] == [*chain(*packs)], "in the same order"
    assert all(found)
    if n == 1:
        assert found == packs


def test_workers_end_at_about_the_same_time() -> None:
    """The digits: full fine-tuning and seven ranks in three seeds."""
    full, ranks = [(52, s) for s in range(3)], [(r, s) for r in (1, 2, 4, 8, 16, 32, 64) for s in range(3)]
    found = cut([full, ranks], 2)
    assert [len(pack) for pack in found] == [3, 18, 3]
    assert found[2] == [(64, 0), (64, 1), (64, 2)]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_no_worker_is_idle_that_could_take_a_run(n: int) -> None:
    assert len(cut([[(4, s) for s in range(6)]], n)) == min(n, 6)


def test_what_gains_little_is_not_cut() -> None:
    full, ranks = [(52, s) for s in range(4)], [(4, s) for s in range(4)]
    assert cut([full, ranks], 2) == [full, ranks]


def test_nothing_is_cut_into_nothing() -> None:
    assert cut([], 3) == []
    assert cut([[(1, 0)]], 3) == [[(1, 0)]]
