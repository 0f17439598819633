"""Twelve ways in which a rule of this kind has misled its users, each with an input on which it did."""

import numpy as np
import pytest
import torch

from rankwise.pack.counts import ratio_rows
from rankwise.sweeps.choose.answer import Answer, decide, reference_of
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.choose.configurations import RunScore, choose_learning_rates
from rankwise.sweeps.choose.power import detectable, power_words
from rankwise.sweeps.choose.reason import reason
from rankwise.sweeps.choose.rule import Rule, Tolerance, default_tolerance
from rankwise.sweeps.choose.statistics import interval
from rankwise.train.crossfit import CrossFit

N = 506


def runs(name: str, values: np.ndarray, parameters: int, method: str = "lora") -> list[RunScore]:
    """A run for each seed: (seeds, rows) of the metric."""
    return [
        RunScore(
            name=f"{name}-s{seed}",
            method=method,
            r=int(name[1:]) if method == "lora" else None,
            lr=1e-3,
            seed=seed,
            trainable_parameters=parameters,
            validation=row,
            configuration=name,
        )
        for seed, row in enumerate(values)
    ]


def hits(mean: float, seeds: int = 5, n: int = N, key: int = 0, noise: float = 0.01) -> np.ndarray:
    """Correctness of runs that err on the same hard examples, but for some noise."""
    draws = np.random.default_rng(key)
    flipped = draws.random((seeds, n)) < noise
    return ((np.arange(n) < n * mean) ^ flipped).astype(float)


def decided(*groups: list[RunScore], higher: bool = True, floors: Floors | None = None, **rule: object) -> Answer:
    configurations = choose_learning_rates([run for group in groups for run in group], higher)
    given = Rule(rule.pop("tolerance", Tolerance(of_reference=0.01)), higher, **rule)  # pyright: ignore[reportArgumentType]
    return decide(configurations, reference_of(configurations, higher), given, floors)


def full(values: np.ndarray) -> list[RunScore]:
    return runs("full", values, 54_725, "full")


def text(answer: Answer, **settings: bool) -> str:
    labels = {name: name for name in [*answer.comparisons, answer.reference]}
    return reason(answer, labels, answer.smaller, "1% of full", "the base", **{"strict": False, **settings})


def test_1_what_passes_by_its_mean_alone_is_no_answer() -> None:
    answer = decided(runs("r1", hits(0.953, key=1), 1045), full(hits(0.96, key=2)))
    assert answer.comparisons["r1"].mean > -answer.tolerance
    assert (answer.verdict, answer.name, answer.leaning) == ("undecided", "full", "r1")


def test_2_nothing_smaller_needs_a_test_too() -> None:
    answer = decided(runs("r1", hits(0.945, key=1), 1045), full(hits(0.96, key=2)))
    assert answer.comparisons["r1"].mean < -answer.tolerance
    assert answer.verdict == "undecided"


@pytest.mark.parametrize("seeds", [1, 5])
def test_3_no_variance_is_no_certainty(seeds: int) -> None:
    answer = decided(runs("r1", np.ones((seeds, 5)), 1045), full(np.ones((seeds, 5))))
    assert answer.verdict == "undecided"


def test_4_one_seed_claims_nothing() -> None:
    answer = decided(runs("r1", hits(0.96, seeds=1), 1045), full(hits(0.96, seeds=1)))
    assert (answer.verdict, answer.comparisons["r1"].p_within) == ("undecided", None)
    assert answer.comparisons["r1"].lower_bound is None


def test_5_the_rows_that_choose_the_epoch_do_not_decide() -> None:
    """Sixty epochs of pure chance: the best one looks good on the rows that chose it, and no better on the others."""
    draws = torch.Generator().manual_seed(0)
    half = torch.rand(40, N, generator=draws) < 0.5
    crossfit = CrossFit(half, torch.device("cpu"), torch.float64)
    best = torch.full((40,), torch.inf, dtype=torch.float64)
    for _ in range(60):
        metric = (torch.rand(40, N, generator=draws, dtype=torch.float64) < 0.5).double()
        crossfit.observe(1 - metric, metric)
        best = torch.minimum(best, 1 - metric.mean(1))
    assert float((1 - best).mean()) > 0.54
    assert float(crossfit.values.mean()) == pytest.approx(0.5, abs=0.01)


def test_6_what_the_data_can_show_is_said_beforehand() -> None:
    said = power_words(N, 5, False, Rule(Tolerance(of_reference=0.01), True), 0.96)
    assert detectable(N, 5, False) > 0.0096, "the tolerance can't be decided"
    assert "506 validation examples can show differences of about 0.98 points with 5 seeds" in said
    assert "the tolerance is about 0.96 points" in said


def test_7_the_tolerance_knows_the_base_and_the_majority_class() -> None:
    majority = (np.arange(N) < 0.97 * N).astype(float)
    answer = decided(
        runs("r1", np.stack([majority] * 5), 1045), full(hits(0.972)), floors=Floors(constant=lambda r: majority)
    )
    assert (answer.verdict, answer.name) == ("no_gain", "base")
    # A loss whose base is bad: a share of the gain, not 2% of 900.
    draws = np.random.default_rng(0)
    base, best, far, near = (mean + 0.1 * draws.standard_normal((5, N)) for mean in (918.9, 1.98, 60.0, 40.0))
    answer = decided(
        runs("r1", far, 1045),
        runs("r2", near, 2090),
        full(best),
        higher=False,
        tolerance=default_tolerance(False),
        floors=Floors(base=lambda rows: base[0]),
    )
    assert answer.tolerance == pytest.approx(0.05 * (918.9 - 1.98), rel=1e-3)
    assert (answer.verdict, answer.name, answer.comparisons["r1"].state) == ("shown", "r2", "not")


def test_8_where_nothing_was_learned_the_base_is_the_answer() -> None:
    base = hits(0.2, seeds=1)[0]
    answer = decided(runs("r1", hits(0.2), 1045), full(hits(0.2)), floors=Floors(base=lambda rows: base))
    assert (answer.verdict, answer.name, answer.trainable_parameters) == ("no_gain", "base", 0)


def test_9_a_loss_a_token_has_the_interval_of_a_ratio() -> None:
    """Lengths differ much, losses a token little: rows' sums alone would make the interval several times too wide."""
    draws = np.random.default_rng(0)
    lengths = np.ceil(np.exp(3 + draws.standard_normal(N)))
    sums = lengths * (2 + 0.1 * draws.standard_normal((3, N)))
    rows = ratio_rows(torch.from_numpy(sums), torch.from_numpy(lengths).expand(3, -1)).numpy()
    low, high = interval(rows)
    wide_low, wide_high = interval(sums / lengths.mean())
    assert low < 2 < high
    assert wide_high - wide_low > 3 * (high - low)


def test_10_more_seeds_are_asked_for_only_where_they_can_decide() -> None:
    """Five seeds that share their rows and agree: what is missing is rows."""
    one = hits(0.9585, seeds=1, noise=0.02, key=3)
    answer = decided(runs("r1", np.repeat(one, 5, 0), 1045), full(hits(0.96, noise=0.0)))
    assert answer.verdict == "undecided"
    assert answer.more_seeds_needed is None
    assert "more validation examples could" in text(answer)


def test_11_many_sizes_just_outside() -> None:
    """Strict testing names one of them seldom; the text of a plain grid warns."""
    named = {True: 0, False: 0}
    for key in range(60):
        draws = np.random.default_rng(key)
        hard = draws.random(N)

        def made(share: float, hard: np.ndarray = hard, draws: np.random.Generator = draws) -> np.ndarray:
            return (hard + draws.normal(0, 0.02, (5, N)) < share).astype(float)

        groups = [runs(f"r{r}", made(0.95), 1045 * r) for r in (1, 2, 4, 8, 16, 32)] + [full(made(0.96))]
        for strict in named:
            named[strict] += decided(*groups, tolerance=Tolerance(absolute=0.0099), strict=strict).verdict == "shown"
    assert named[True] / 60 < 0.08 < named[False] / 60
    answer = decided(
        *[runs(f"r{r}", hits(0.99, key=r), 1045 * r) for r in (1, 2, 4)],
        full(hits(0.99)),
        tolerance=Tolerance(absolute=0.05),
    )
    assert "in up to 20% of the worst cases; strict testing keeps that at 5%" in text(answer)
    assert "would name one in several times 5% of sweeps; strict testing keeps that at 5%" in text(
        answer, adaptive=True
    )


def test_12_without_a_baseline_nothing_is_said_of_what_was_not_tried() -> None:
    answer = decided(runs("r8", hits(0.96), 8360))
    assert (answer.verdict, answer.reference, answer.relative_parameters) == ("undecided", "r8", 1.0)
    assert text(answer) == "Nothing smaller than r8 was tried, so nothing could be compared."
