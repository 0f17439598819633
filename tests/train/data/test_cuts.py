"""Cuts of a pool: disjoint, complete, and the same however many seeds there are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DataError
from rankwise.streams import stream
from rankwise.train.data.cuts import Rotation, cut_pool, half_of, pooled


@given(st.integers(2, 200), st.integers(1, 60), st.integers(0, 40))
def test_a_cut_parts_the_pool(n: int, n_validation: int, seed: int) -> None:
    if n_validation >= n:
        with pytest.raises(DataError, match="can't be cut"):
            cut_pool(n, n_validation, seed)
        return
    cut = cut_pool(n, n_validation, seed)
    assert len(cut.validation) == n_validation
    assert torch.cat([cut.train, cut.validation]).sort().values.equal(torch.arange(n))
    assert cut.train.equal(cut.train.sort().values)
    assert cut.validation.equal(cut.validation.sort().values)


def test_cuts_are_folds_of_one_permutation_and_then_of_the_next() -> None:
    """10 of 43: seeds 0 to 3 share a permutation, seeds 4 to 7 the next one."""
    for turn in (0, 1):
        order = torch.randperm(43, generator=stream("rotation", turn))
        for fold in range(4):
            expected = order[10 * fold : 10 * fold + 10].sort().values
            assert cut_pool(43, 10, 4 * turn + fold).validation.equal(expected)


def test_seeds_have_disjoint_cuts_while_the_pool_lasts() -> None:
    cuts = [set(cut_pool(100, 12, seed).validation.tolist()) for seed in range(9)]
    first = cuts[:8]
    assert len(set[int]().union(*first)) == 96
    assert cuts[8] not in first


@given(st.lists(st.integers(0, 12), min_size=20, max_size=80), st.integers(1, 6), st.integers(0, 9))
def test_equal_inputs_stay_on_one_side(inputs: list[int], n_validation: int, seed: int) -> None:
    _, groups = torch.tensor(inputs).unique(return_inverse=True)
    spare = int(groups.bincount().max()) - 1
    n_train = len(inputs) - n_validation - spare
    if n_train < 1:
        with pytest.raises(DataError, match="can't be cut"):
            cut_pool(len(inputs), n_validation, seed, groups)
        return
    cut = cut_pool(len(inputs), n_validation, seed, groups)
    assert (len(cut.train), len(cut.validation)) == (n_train, n_validation), "as many for every seed"
    assert not {*groups[cut.train].tolist()} & {*groups[cut.validation].tolist()}


def test_cuts_of_groups_are_disjoint_too() -> None:
    groups = torch.arange(60) // 3
    # Up to 9 rows a cut, so 6 cuts of 60 rows.
    cuts = [cut_pool(60, 7, seed, groups).validation.tolist() for seed in range(6)]
    assert len({row for cut in cuts for row in cut}) == 42


def test_each_row_is_a_group_by_default() -> None:
    for seed in range(5):
        one, other = cut_pool(30, 4, seed), cut_pool(30, 4, seed, torch.arange(30))
        assert one.train.equal(other.train)
        assert one.validation.equal(other.validation)


def test_halves_depend_on_the_seed() -> None:
    halves = [half_of(31, seed) for seed in range(6)]
    assert {int(half.sum()) for half in halves} == {15}
    assert len({tuple(half.tolist()) for half in halves}) == 6
    assert half_of(31, 3).equal(halves[3])


def test_a_pool_has_training_rows_first_and_no_copy() -> None:
    x, y = torch.randn(7, 3), torch.arange(7)
    train, validation, rotation = pooled((x[:5], y[:5]), (x[5:], y[5:]))
    assert rotation.pool[0].equal(x)
    assert (train[1].tolist(), validation[1].tolist()) == ([0, 1, 2, 3, 4], [5, 6])
    assert train[0].data_ptr() == rotation.pool[0].data_ptr()
    assert (rotation.n_train, rotation.n_validation) == (5, 2)
    assert rotation.plain() == {"pool": 7, "validation": 2, "groups": None}
    assert rotation.cut(3) is rotation.cut(3)
    assert Rotation(rotation.pool, 2, torch.arange(7) // 2).plain()["groups"] == 4
