"""Bounds of means over seeds and examples: their coverage and their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rankwise.errors import DataError
from rankwise.sweeps.choose.statistics import interval, ratio_interval, spread_of


def lower_bound(values, level=0.95):
    return spread_of(list(values), least_seeds=1).bound(level)


def crossed(draws, n_seeds, n_examples, *, seed, example, rest):
    """Values with normal effects of these standard deviations around a mean of 0."""
    return (
        draws.normal(0, seed, (n_seeds, 1))
        + draws.normal(0, example, (1, n_examples))
        + draws.normal(0, rest, (n_seeds, n_examples))
    )


def correctness(draws, n_seeds, n_examples):
    """Differences of two classifiers that get harder and easier examples right alike; the mean is 0 by symmetry."""
    difficulty = draws.normal(1.5, 1, (1, n_examples))
    first, second = (
        difficulty + crossed(draws, n_seeds, n_examples, seed=0.05, example=0.4, rest=0.4) > 0 for _ in range(2)
    )
    return first.astype(float) - second


arrays = st.builds(
    lambda key, n_seeds, n_examples: (np.random.default_rng(key).random((n_seeds, n_examples)) < 0.8).astype(float),
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(2, 60),
)


class TestCoverage:
    @pytest.mark.parametrize("n_seeds", [2, 3, 5])
    @pytest.mark.parametrize("draw", ["seeds", "even", "examples", "correctness"])
    def test_one_sided_bound_covers(self, n_seeds, draw):
        draws, repeats = np.random.default_rng(7), 400
        effects = {
            "seeds": {"seed": 0.02, "example": 0.1, "rest": 0.1},
            "even": {"seed": 0.005, "example": 0.1, "rest": 0.1},
            "examples": {"seed": 0.0, "example": 0.15, "rest": 0.0},
        }
        values = (
            (
                correctness(draws, n_seeds, 500)
                if draw == "correctness"
                else crossed(draws, n_seeds, 500, **effects[draw])
            )
            for _ in range(repeats)
        )
        covered = sum(lower_bound(v) <= 0 for v in values) / repeats
        # The standard error of a share of 0.95 is 0.011 here; 0.9 is what two seeds reach at least.
        assert 0.90 <= covered <= 0.995

    @pytest.mark.parametrize("n_seeds", [3, 5])
    def test_covers_where_every_seed_has_examples_of_its_own(self, n_seeds):
        draws, covered = np.random.default_rng(8), 0
        for _ in range(400):
            rows = [crossed(draws, 1, 300, seed=0.01, example=0.1, rest=0.1)[0] for _ in range(n_seeds)]
            covered += spread_of(rows, rotated=True).bound(0.95) <= 0
        assert 0.92 <= covered / 400 <= 0.98

    def test_one_seed_holds_the_error_of_examples_only(self):
        draws = np.random.default_rng(3)
        one = crossed(draws, 1, 400, seed=5.0, example=0.1, rest=0.0)
        low, high = interval(one)
        # The seed's own luck of size 5 is not in it.
        assert high - low < 0.05
        plain = stats.ttest_1samp(one[0], 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((plain.low, plain.high))


class TestBounds:
    def test_equal_columns_give_the_t_interval_over_seeds(self):
        seeds = np.array([0.91, 0.95, 0.94, 0.97])
        plain = stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
        assert interval(np.repeat(seeds[:, None], 50, axis=1)) == pytest.approx((plain.low, plain.high))

    def test_equal_rows_give_the_t_interval_over_examples(self):
        examples = np.random.default_rng(0).random(300)
        plain = stats.ttest_1samp(examples, 0).confidence_interval(0.95)
        assert interval(np.repeat(examples[None], 3, axis=0)) == pytest.approx((plain.low, plain.high), rel=1e-3)

    def test_estimates_are_those_of_the_two_way_table(self):
        draws = np.random.default_rng(1)
        found = [spread_of(list(crossed(draws, 4, 60, seed=0.3, example=1.0, rest=2.0))) for _ in range(1500)]
        # The part of the seeds is never below 0, so its mean lies a little above.
        assert np.mean([s.seeds for s in found]) == pytest.approx(0.3**2 / 4, rel=0.25)
        assert np.mean([s.examples for s in found]) == pytest.approx(1.0 / 60 + 4.0 / 240, rel=0.1)

    @given(arrays)
    def test_bounds_surround_the_mean_and_narrow_with_the_level(self, values):
        low, high = interval(values)
        assert low <= values.mean() + 1e-12
        assert high >= values.mean() - 1e-12
        assert low <= lower_bound(values) + 1e-12
        assert lower_bound(values, 0.99) <= lower_bound(values, 0.9) + 1e-12

    @given(arrays, st.floats(-2, 2), st.floats(0.1, 3))
    def test_shift_and_scale_carry_over(self, values, shift, factor):
        assert interval(shift + factor * values) == pytest.approx(
            tuple(shift + factor * end for end in interval(values)), abs=1e-9
        )

    @given(arrays)
    def test_order_of_seeds_and_examples_does_not_matter(self, values):
        assert interval(values[::-1, ::-1]) == pytest.approx(interval(values), abs=1e-12)

    def test_no_spread_is_certain(self):
        assert interval(np.zeros((3, 10))) == (0.0, 0.0)
        assert lower_bound(np.ones((1, 10))) == 1.0

    @pytest.mark.parametrize("shape", [(0, 10), (2, 1)])
    def test_too_little_is_an_error(self, shape):
        with pytest.raises(DataError, match="are needed"):
            interval(np.zeros(shape))

    def test_values_that_are_not_finite_are_an_error(self):
        with pytest.raises(DataError, match="1 of 4 metric values are not finite"):
            interval(np.array([[0.0, 1.0], [np.nan, 1.0]]))


class TestRatio:
    def test_of_equal_values_is_one(self):
        values = np.random.default_rng(0).random((3, 40))
        assert ratio_interval(values, values) == pytest.approx((1.0, 1.0))

    @given(arrays, st.floats(0.2, 1.0))
    def test_of_a_share_is_that_share(self, values, share):
        values = values + 0.1
        assert ratio_interval(share * values, values) == pytest.approx((share, share))

    def test_covers(self):
        draws, repeats, hits = np.random.default_rng(5), 300, 0
        for _ in range(repeats):
            difficulty = draws.normal(0, 0.3, (1, 400))
            reference = 1 + difficulty + draws.normal(0, 0.01, (4, 1))
            values = 0.9 + difficulty + draws.normal(0, 0.01, (4, 1)) + draws.normal(0, 0.2, (4, 400))
            low, high = ratio_interval(values, reference)
            hits += low <= 0.9 <= high
        assert 0.91 <= hits / repeats <= 0.99

    def test_needs_pairs_and_something_to_divide_by(self):
        with pytest.raises(DataError, match=r"\(2, 3\), the reference's \(3, 3\)"):
            ratio_interval(np.ones((2, 3)), np.ones((3, 3)))
        with pytest.raises(DataError, match="0 on average"):
            ratio_interval(np.ones((2, 3)), np.zeros((2, 3)))
