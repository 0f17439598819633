"""The rule of the answer, on made-up runs whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DataError
from rankwise.sweeps.choose.answer import decide, reference_of
from rankwise.sweeps.choose.comparison import Floors, compare_with_reference
from rankwise.sweeps.choose.configurations import RunScore, choose_learning_rates
from rankwise.sweeps.choose.reason import reason
from rankwise.sweeps.choose.rule import Rule, Tolerance, default_tolerance
from rankwise.sweeps.choose.wording import floor_words

N = 1000


def runs_of(name, mean, *, method="lora", parameters=None, seeds=3, wobble=0.0, key=0, n=N, rows=None):
    """Runs with 0/1 correctness on shared examples; each seed's accuracy is `mean` plus its own part of `wobble`."""
    r = int(name[1:]) if method == "lora" else None
    return [
        RunScore(
            name=f"{name}-s{seed}",
            method=method,
            r=r,
            lr=1e-3,
            seed=seed,
            trainable_parameters=parameters or 1045 * (r or 50),
            # The same examples are hard for all, so that paired differences are sharp.
            validation=np.arange(n) < n * (mean + wobble * np.cos(key + 2.1 * seed)),
            configuration="" if method == "lora" else name,
            rows=None if rows is None else rows(seed),
        )
        for seed in range(seeds)
    ]


def full(mean, **settings):
    return runs_of("full", mean, method="full", parameters=54_725, **settings)


def decided(*groups, tolerance=0.01, higher_is_better=True, floors=None, **settings):
    """Go the whole way from runs to the answer."""
    configurations = choose_learning_rates([run for group in groups for run in group], higher_is_better)
    rule = Rule(Tolerance(absolute=tolerance), higher_is_better, **settings)
    return decide(configurations, reference_of(configurations, higher_is_better), rule, floors)


def told(answer, strict=False):
    labels = {name: name for name in [*answer.comparisons, answer.reference]}
    floor = floor_words(answer.floor, "accuracy", higher_is_better=True)
    return reason(answer, labels, answer.smaller, "1% of full", floor, strict=strict)


def floor(mean, n=N):
    """A base, or a constant, that gets this share right."""
    values = (np.arange(n) < n * mean).astype(float)
    return lambda rows: values if rows is None else values[rows]


class TestReference:
    def test_full_fine_tuning_is_it_even_when_an_adapter_is_better(self):
        configurations = choose_learning_rates(runs_of("r4", 0.99) + full(0.9), True)
        assert reference_of(configurations, True).name == "full"

    def test_else_the_best(self):
        runs = runs_of("r1", 0.8) + runs_of("r4", 0.9) + runs_of("r8", 0.9)
        runs += runs_of("base", 0.99, method="base", parameters=1)
        assert reference_of(choose_learning_rates(runs, True), True).name == "r4"
        assert reference_of(choose_learning_rates(runs, False), False).name == "r1"

    def test_the_best_of_several_baselines(self):
        runs = full(0.93) + runs_of("full-long", 0.98, method="full", parameters=54_725) + runs_of("r4", 0.99)
        assert reference_of(choose_learning_rates(runs, True), True).name == "full-long"

    def test_without_any_finished_run_there_is_none(self):
        with pytest.raises(DataError, match="No configuration has a finished run"):
            reference_of([], True)


class TestCompare:
    rule = Rule(Tolerance(absolute=0.01), True)

    def test_is_paired_over_the_seeds_both_have(self):
        ours, theirs = choose_learning_rates(runs_of("r4", 0.9, wobble=0.02, seeds=5) + full(0.92, seeds=3), True)
        found = compare_with_reference(ours, theirs, self.rule)
        assert (found.name, found.n_seeds) == ("r4", 3)
        assert found.mean == pytest.approx((ours.validation((0, 1, 2)) - theirs.validation((0, 1, 2))).mean())

    def test_positive_is_better_for_losses_too(self):
        ours, theirs = choose_learning_rates(runs_of("r4", 0.8) + full(0.9), False)
        assert compare_with_reference(ours, theirs, Rule(Tolerance(absolute=0.01), False)).mean == pytest.approx(0.1)

    def test_no_seed_in_common(self):
        (ours,) = choose_learning_rates(runs_of("r4", 0.9), True)
        (theirs,) = choose_learning_rates([run for run in full(0.9, seeds=5) if run.seed > 2], True)
        assert compare_with_reference(ours, theirs, self.rule) is None

    def test_other_examples_are_an_error(self):
        ours, theirs = choose_learning_rates(runs_of("r4", 0.9, n=100) + full(0.9), True)
        with pytest.raises(DataError, match="r4 was measured on 100 validation examples, full on 1000"):
            compare_with_reference(ours, theirs, self.rule)

    def test_other_rows_of_the_pool_are_an_error(self):
        ours = runs_of("r4", 0.9, rows=lambda seed: np.arange(N) + seed)
        theirs = full(0.9, rows=lambda seed: np.arange(N) + 2 * seed)
        configurations = choose_learning_rates(ours + theirs, True)
        with pytest.raises(DataError, match="different validation rows in seed 1"):
            compare_with_reference(*configurations, self.rule)


class TestVerdicts:
    def test_shown_is_the_fewest_parameters_that_are_probable_enough(self):
        answer = decided(runs_of("r1", 0.9), runs_of("r2", 0.98), runs_of("r4", 0.98), full(0.98))
        assert (answer.verdict, answer.name, answer.r) == ("shown", "r2", 2)
        assert (answer.trainable_parameters, answer.reference, answer.more_seeds_needed) == (2090, "full", 0)
        assert answer.relative_parameters == pytest.approx(2090 / 54_725)
        assert answer.comparisons["r2"].p_within > 0.95 > 0.05 > answer.comparisons["r1"].p_within
        assert [answer.comparisons[name].state for name in ("r1", "r2", "r4")] == ["not", "shown", "shown"]
        assert told(answer).startswith("r2 is the smallest shown to be within 1% of full (1 points)")
        assert "r1 is shown not to be" in told(answer)

    def test_a_mean_that_passes_alone_decides_nothing(self):
        answer = decided(runs_of("r1", 0.9), runs_of("r2", 0.975, wobble=0.02), full(0.98))
        assert answer.comparisons["r2"].mean > -0.01 >= answer.comparisons["r2"].lower_bound
        assert (answer.verdict, answer.name, answer.leaning) == ("undecided", "full", "r2")
        assert 0.5 < answer.comparisons["r2"].p_within < 0.95
        assert "Until then: full." in told(answer)

    def test_the_reference_is_an_answer_only_where_all_smaller_ones_are_shown_to_fail(self):
        answer = decided(runs_of("r1", 0.8), runs_of("r2", 0.9), full(0.98))
        assert (answer.verdict, answer.name, answer.relative_parameters) == ("nothing_smaller", "full", 1.0)
        assert "the nearest is r2" in told(answer)
        assert decided(runs_of("r1", 0.8), runs_of("r2", 0.968, wobble=0.01), full(0.98)).verdict == "undecided"

    def test_nothing_learned_is_no_gain(self):
        floors = Floors(base=floor(0.98))
        answer = decided(runs_of("r1", 0.98), full(0.98), floors=floors)
        assert (answer.verdict, answer.name, answer.trainable_parameters) == ("no_gain", "base", 0)
        assert "not shown to beat the base" in told(answer)

    def test_an_adapter_that_predicts_the_majority_gains_nothing(self):
        floors = Floors(base=floor(0.01), constant=floor(0.97))
        answer = decided(runs_of("r1", 0.97), full(0.97), floors=floors)
        assert (answer.verdict, answer.floor) == ("no_gain", "constant")
        assert "most frequent class" in told(answer)

    def test_too_few_examples_can_still_show_that_something_is_worse(self):
        answer = decided(runs_of("r1", 0.9, wobble=0.05, n=200), full(0.95, n=200), tolerance=0.01)
        assert (answer.verdict, answer.leaning, answer.comparisons["r1"].state) == ("undecided", None, "open")
        assert answer.more_seeds_needed
        assert f"About {answer.more_seeds_needed} more seed" in told(answer)
        assert "could show that nothing smaller is" in told(answer)

    def test_one_seed_is_undecided_and_says_why(self):
        answer = decided(runs_of("r1", 0.98, seeds=1), full(0.98, seeds=1))
        assert (answer.verdict, answer.comparisons["r1"].p_within, answer.leaning) == ("undecided", None, None)
        assert "One seed can't tell" in told(answer)

    def test_a_few_examples_that_all_agree_show_nothing(self):
        answer = decided(runs_of("r1", 1.0, n=5), full(1.0, n=5), tolerance=0.01)
        assert (answer.verdict, answer.rows_needed) == ("undecided", 299)
        assert "needs at least 299" in told(answer)
        assert answer.more_seeds_needed is None, "seeds add no validation examples"
        assert "seed" not in told(answer)
        # Not one row short of them either.
        assert decided(runs_of("r1", 1.0, n=298), full(1.0, n=298)).verdict == "undecided"
        assert decided(runs_of("r1", 1.0, n=600), full(1.0, n=600)).verdict == "shown"

    def test_an_adapter_larger_than_full_fine_tuning_is_no_answer(self):
        answer = decided(runs_of("r64", 0.99), full(0.98))
        assert (answer.verdict, answer.name) == ("undecided", "full")
        assert "Nothing smaller than full was tried" in told(answer)

    def test_the_head_alone_can_be_the_answer(self):
        head = runs_of("head", 0.98, method="head", parameters=325)
        assert decided(head, runs_of("r1", 0.98), full(0.98)).name == "head"

    def test_other_baselines_can_not(self):
        small = runs_of("full-small", 0.98, method="full", parameters=10)
        assert decided(small, runs_of("r1", 0.985), full(0.985)).name == "r1"

    def test_without_a_baseline_smaller_ones_are_held_against_the_best(self):
        answer = decided(runs_of("r1", 0.98), runs_of("r8", 0.98))
        assert (answer.reference, answer.verdict) == ("r1", "undecided")
        assert "Nothing smaller than r1 was tried" in told(answer)

    def test_strict_stops_at_the_first_size_that_fails_from_above(self):
        groups = runs_of("r1", 0.98), runs_of("r2", 0.9), runs_of("r4", 0.98), full(0.98)
        assert decided(*groups).name == "r1"
        assert decided(*groups, strict=True).name == "r4"
        assert "up to 20%" in told(decided(*groups))
        assert "up to 20%" not in told(decided(*groups, strict=True), strict=True)

    def test_where_only_examples_could_decide_it_says_so(self):
        hard = [np.random.default_rng(0).random(N) < 0.03] * 3
        runs = runs_of("r1", 0.98)
        noisy = [RunScore(**{**vars(run), "validation": run.validation ^ h}) for run, h in zip(runs, hard, strict=True)]
        answer = decided(noisy, full(0.965))
        assert answer.verdict == "undecided"
        assert answer.more_seeds_needed is None
        assert "more validation examples could" in told(answer)

    @given(st.randoms(use_true_random=False))
    def test_order_of_configurations_does_not_matter(self, random):
        runs = [run for i in (1, 2, 4) for run in runs_of(f"r{i}", 0.95 + 0.01 * i, wobble=0.01, key=i)] + full(0.985)
        assert _essence(decided(random.sample(runs, len(runs)))) == _essence(decided(runs))

    @given(st.lists(st.tuples(st.floats(0.9, 0.99), st.floats(0, 0.02)), min_size=1, max_size=4))
    def test_a_share_of_mistakes_decides_as_a_share_of_hits(self, scores):
        groups = [runs_of(f"r{i}", mean, wobble=wobble, key=i) for i, (mean, wobble) in enumerate(scores, start=1)]
        groups.append(full(0.97))
        mistakes = [[_wrong(run) for run in group] for group in groups]
        assert _essence(decided(*mistakes, higher_is_better=False)) == _essence(decided(*groups))


class TestRotated:
    def test_columns_need_not_line_up(self):
        def rows(seed):
            return np.arange(seed * N, seed * N + N)

        answer = decided(runs_of("r1", 0.98, seeds=5, rows=rows), full(0.98, seeds=5, rows=rows))
        assert (answer.verdict, answer.rotated, answer.rows) == ("shown", True, 5 * N)

    def test_seeds_that_differ_leave_it_open(self):
        def rows(seed):
            return np.arange(seed * N, seed * N + N)

        answer = decided(runs_of("r1", 0.975, wobble=0.01, seeds=4, rows=rows), full(0.98, seeds=4, rows=rows))
        assert answer.verdict == "undecided"
        assert answer.more_seeds_needed >= 1


class TestFloors:
    def test_the_gain_bounds_the_tolerance_of_an_accuracy(self):
        configurations = choose_learning_rates(runs_of("r1", 0.975) + full(0.98), True)
        near = Floors(base=floor(0.93))
        answer = decide(configurations, reference_of(configurations, True), Rule(default_tolerance(True), True), near)
        assert answer.tolerance == pytest.approx(0.05 * 0.05)
        far = Floors(base=floor(0.1))
        answer = decide(configurations, reference_of(configurations, True), Rule(default_tolerance(True), True), far)
        assert answer.tolerance == pytest.approx(0.01 * 0.98)

    def test_the_better_of_base_and_constant_counts(self):
        name, values = Floors(base=floor(0.2), constant=floor(0.5)).better([None, None], True)
        assert (name, len(values), values[0].mean()) == ("constant", 2, 0.5)
        name, _ = Floors(base=floor(0.2), constant=floor(0.5)).better([None], False)
        assert name == "base"
        assert Floors().better([None], True) is None


def _wrong(run: RunScore) -> RunScore:
    """The run with its mistakes counted instead of its hits."""
    return RunScore(**{**vars(run), "validation": 1.0 - run.validation})


def _essence(answer):
    probabilities = {name: c.p_within and round(c.p_within, 9) for name, c in answer.comparisons.items()}
    return answer.name, answer.reference, answer.verdict, answer.leaning, answer.more_seeds_needed, probabilities
