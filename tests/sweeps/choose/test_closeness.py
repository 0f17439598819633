"""How probable it is that a configuration lies within the tolerance, against formulas written out here."""

import math

import numpy as np
import pytest
from scipy import stats

from rankwise.errors import DataError
from rankwise.sweeps.choose.closeness import Paired, difference_bound, judge_within, rows_needed, seeds_to_decide
from rankwise.sweeps.choose.rule import Tolerance


def paired(ours, theirs, floor=None, rotated=False):
    rows = len(ours[0]) * (len(ours) if rotated else 1)
    return Paired(tuple(ours), tuple(theirs), None if floor is None else tuple(floor), rotated, rows)


def losses(seed=0, seeds=4, n=300, shift=0.0, seed_sd=0.05):
    draws = np.random.default_rng(seed)
    shared = draws.normal(2.0, 0.5, n)
    return [shared + shift + draws.normal(0, seed_sd) + draws.normal(0, 0.1, n) for _ in range(seeds)]


def two_way(values):
    """Mean, standard error and Satterthwaite's degrees of freedom of crossed rows, from the mean squares."""
    s, n = values.shape
    mean, a, b = values.mean(), values.mean(1), values.mean(0)
    ms_a = n * ((a - mean) ** 2).sum() / (s - 1)
    ms_b = s * ((b - mean) ** 2).sum() / (n - 1)
    ms_c = ((values - a[:, None] - b[None] + mean) ** 2).sum() / ((s - 1) * (n - 1))
    variance = (max(ms_a, ms_c) + max(ms_b - ms_c, 0)) / (s * n)
    parts = ms_a**2 / (s - 1) + max(ms_b, ms_c) ** 2 / (n - 1) + ms_c**2 / ((s - 1) * (n - 1))
    return mean, math.sqrt(variance), variance**2 * (s * n) ** 2 / parts


def test_of_a_loss_it_is_students_distribution_at_the_two_way_standard_error():
    ours, theirs = losses(1, shift=0.03), losses(2)
    found = judge_within(paired(ours, theirs), Tolerance(absolute=0.2))
    mean, error, freedom = two_way(np.stack(ours) - np.stack(theirs))
    assert found.difference == pytest.approx(mean)
    assert found.probability == pytest.approx(stats.t.cdf((mean + 0.2) / error, freedom), abs=1e-9)
    assert found.lower == pytest.approx(mean - stats.t.ppf(0.95, freedom) * error)
    assert found.upper == pytest.approx(mean + stats.t.ppf(0.95, freedom) * error)


def test_a_share_of_the_reference_brings_its_error_along():
    ours, theirs = losses(1), losses(2)
    found = judge_within(paired(ours, theirs), Tolerance(of_reference=0.1))
    mean, error, freedom = two_way(np.stack(ours) - 0.9 * np.stack(theirs))
    assert found.probability == pytest.approx(stats.t.cdf(mean / error, freedom), abs=1e-9)


def test_a_share_of_the_gain_brings_the_floors_error_along():
    ours, theirs, floor = losses(1), losses(2), losses(3, shift=-1.0)
    found = judge_within(paired(ours, theirs, floor), Tolerance(of_gain=0.05))
    contrast = np.stack(ours) - np.stack(theirs) + 0.05 * (np.stack(theirs) - np.stack(floor))
    mean, error, freedom = two_way(contrast)
    assert found.probability == pytest.approx(stats.t.cdf(mean / error, freedom), abs=1e-9)


def test_of_two_tolerances_the_smaller_probability_counts():
    data = paired(losses(1), losses(2), losses(3, shift=-1.0))
    both = judge_within(data, Tolerance(of_reference=0.1, of_gain=0.05)).probability
    each = [judge_within(data, Tolerance(of_reference=0.1)), judge_within(data, Tolerance(of_gain=0.05))]
    assert both == min(one.probability for one in each)


def test_hits_that_all_agree_are_as_sure_as_their_number_allows():
    n, tolerance = 400, 0.02
    equal = [np.ones(n)] * 3
    found = judge_within(paired(equal, equal), Tolerance(absolute=tolerance))
    # The largest level at which no difference outside the tolerance is left standing.
    outside = np.linspace(tolerance, 0.5, 2000)
    levels = stats.t.cdf(outside / np.sqrt(outside * (1 - outside) / n), n - 1)
    assert found.probability == pytest.approx(levels.min(), abs=1e-4)
    assert found.lower < -1 / n


def test_where_seeds_have_rows_of_their_own_the_seeds_means_count():
    draws = np.random.default_rng(0)
    ours = [(draws.random(500) < 0.9).astype(float) for _ in range(6)]
    theirs = [(draws.random(500) < 0.9).astype(float) for _ in range(6)]
    found = judge_within(paired(ours, theirs, rotated=True), Tolerance(absolute=0.05))
    differences = np.array([a.mean() - b.mean() for a, b in zip(ours, theirs, strict=True)])
    error = differences.std(ddof=1) / math.sqrt(6)
    assert found.probability == pytest.approx(stats.t.cdf((differences.mean() + 0.05) / error, 5), abs=1e-6)


def test_losses_without_any_spread_are_open_unless_all_rows_are_equal():
    theirs = [np.full(50, 2.0)] * 3
    shifted = [np.full(50, 1.9)] * 3
    assert judge_within(paired(shifted, theirs), Tolerance(absolute=0.5)).probability is None
    assert judge_within(paired(theirs, theirs), Tolerance(absolute=0.5)).probability == 1.0


def test_one_seed_tells_the_difference_and_no_more():
    found = judge_within(paired(losses(1, seeds=1), losses(2, seeds=1)), Tolerance(absolute=0.1))
    assert (found.probability, found.lower, found.upper) == (None, None, None)


def test_values_that_are_not_finite_are_refused():
    broken = losses(1)
    broken[0][3] = math.nan
    with pytest.raises(DataError, match="not finite"):
        judge_within(paired(broken, losses(2)), Tolerance(absolute=0.1))


def test_calibration_at_the_edge_of_the_tolerance():
    """A configuration exactly at the edge is shown in about 5 of 100 sweeps."""
    shown = 0
    for key in range(300):
        draws = np.random.default_rng(key)
        hard = draws.random(600)
        noise = [hard + draws.normal(0, 0.05, 600) for _ in range(10)]
        theirs = [(values < 0.95).astype(float) for values in noise[:5]]
        ours = [(values < 0.93).astype(float) for values in noise[5:]]
        shown += judge_within(paired(ours, theirs), Tolerance(absolute=_gap())).probability >= 0.95
    assert 0.01 <= shown / 300 <= 0.09


def _gap():
    """The true difference of the two shares above."""
    normal = np.linspace(-6, 6, 4001)
    weight = np.exp(-(normal**2) / 2)
    weight /= weight.sum()

    def share(cut):
        return float((np.clip(cut - 0.05 * normal, 0, 1) * weight).sum())

    return share(0.95) - share(0.93)


def test_seeds_to_decide():
    open_ = paired(losses(1, shift=0.0, seed_sd=0.2), losses(2, seed_sd=0.2))
    more = seeds_to_decide(open_, Tolerance(absolute=0.2), 0.95)
    assert more is None or more >= 1
    sure = paired(losses(1, seed_sd=0.01), losses(2, seed_sd=0.01))
    assert seeds_to_decide(sure, Tolerance(absolute=1.0), 0.95) == 0
    assert seeds_to_decide(paired(losses(1, seeds=1), losses(2, seeds=1)), Tolerance(absolute=1.0), 0.95) is None


def test_the_gains_bound():
    reference, floor = losses(1, shift=1.0), losses(2)
    mean, error, freedom = two_way(np.stack(reference) - np.stack(floor))
    assert difference_bound(reference, floor, False, 0.95) == pytest.approx(mean - stats.t.ppf(0.95, freedom) * error)
    assert difference_bound(floor, floor, False, 0.95) == 0


def test_rows_needed():
    assert [rows_needed(t) for t in (0.0096, 0.0192, 0.0289)] == [311, 155, 103]
    assert rows_needed(0.0) > 10**6
    # With one row fewer, agreement on all of them has a probability of more than 5% under a loss of the tolerance.
    assert (1 - 0.0096) ** 311 <= 0.05 < (1 - 0.0096) ** 310
