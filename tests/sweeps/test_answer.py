"""The rule of the answer, on made-up runs whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import ConfigError, DataError
from rankwise.sweeps.answer import compare, decide, reference_of, tolerance_of
from rankwise.sweeps.configurations import RunScore, choose_learning_rates
from rankwise.sweeps.statistics import lower_bound

N = 400


def runs_of(name, mean, *, method="lora", parameters=None, seeds=3, wobble=0.0, key=0, n=N):
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
        )
        for seed in range(seeds)
    ]


def decided(*groups, tolerance=0.01, higher_is_better=True):
    """Go the whole way from runs to the answer."""
    configurations = choose_learning_rates([run for group in groups for run in group], higher_is_better)
    return decide(configurations, reference_of(configurations, higher_is_better), tolerance, higher_is_better)


def full(mean, **settings):
    return runs_of("full", mean, method="full", parameters=54_725, **settings)


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


class TestTolerance:
    def test_accuracies(self):
        assert tolerance_of(0.98, 0.3, "accuracy") == pytest.approx(0.0098)

    def test_losses(self):
        assert tolerance_of(2.0, 3.5, "loss") == pytest.approx(0.03)
        assert tolerance_of(2.0, 1.5, "loss") == 0

    @pytest.mark.parametrize("kind", ["accuracy", "loss"])
    def test_the_users_own_overrides(self, kind):
        assert tolerance_of(0.98, None, kind, own=0.005) == 0.005

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"base's metric is not known. Give the tolerance itself"):
            tolerance_of(2.0, None, "loss")
        with pytest.raises(ConfigError, match=r'kind "acuracy" is not known.*Did you mean "accuracy"'):
            tolerance_of(0.9, None, "acuracy")
        for own in (-0.1, float("nan")):
            with pytest.raises(ConfigError, match=r"tolerance is .*at least 0"):
                tolerance_of(0.9, None, "accuracy", own=own)


class TestCompare:
    def test_is_paired_over_the_seeds_both_have(self):
        ours, theirs = choose_learning_rates(runs_of("r4", 0.9, wobble=0.02, seeds=5) + full(0.92, seeds=3), True)
        found = compare(ours, theirs, 0.01, True)
        differences = ours.validation((0, 1, 2)) - theirs.validation((0, 1, 2))
        assert (found.name, found.n_seeds) == ("r4", 3)
        assert found.mean == pytest.approx(differences.mean())
        assert found.lower_bound == pytest.approx(lower_bound(differences))

    def test_positive_is_better_for_losses_too(self):
        ours, theirs = choose_learning_rates(runs_of("r4", 0.8) + full(0.9), False)
        assert compare(ours, theirs, 0.01, False).mean == pytest.approx(0.1)

    def test_no_seed_in_common(self):
        (ours,) = choose_learning_rates(runs_of("r4", 0.9), True)
        (theirs,) = choose_learning_rates([run for run in full(0.9, seeds=5) if run.seed > 2], True)
        assert compare(ours, theirs, 0.01, True) is None

    def test_other_examples_are_an_error(self):
        ours, theirs = choose_learning_rates(runs_of("r4", 0.9, n=100) + full(0.9), True)
        with pytest.raises(DataError, match="r4 was measured on 100 validation examples, full on 400"):
            compare(ours, theirs, 0.01, True)


class TestDecide:
    def test_fewest_parameters_whose_bound_passes(self):
        answer = decided(runs_of("r1", 0.9), runs_of("r2", 0.98), runs_of("r4", 0.98), full(0.98))
        assert (answer.name, answer.r, answer.separable, answer.more_seeds_needed) == ("r2", 2, True, 0)
        assert (answer.trainable_parameters, answer.reference) == (2090, "full")
        assert answer.relative_parameters == pytest.approx(2090 / 54_725)
        assert answer.reason.startswith("r2 has the fewest trainable parameters of those whose 95% bound")
        assert set(answer.comparisons) == {"r1", "r2", "r4", "full"}

    def test_when_the_mean_passes_alone_it_is_not_separable(self):
        answer = decided(runs_of("r1", 0.9), runs_of("r2", 0.975, wobble=0.02), full(0.98))
        comparison = answer.comparisons["r2"]
        assert comparison.mean > -0.01 >= comparison.lower_bound
        assert (answer.name, answer.separable) == ("r2", False)
        assert answer.more_seeds_needed == comparison.more_seeds_needed >= 1
        assert f"about {answer.more_seeds_needed} more seed" in answer.reason

    def test_a_bound_that_passes_goes_before_a_smaller_mean(self):
        answer = decided(runs_of("r2", 0.975, wobble=0.02), runs_of("r8", 0.98), full(0.98))
        assert (answer.name, answer.separable) == ("r8", True)
        assert "r2 is smaller and comes within by its mean" in answer.reason

    def test_when_nothing_passes_the_reference_is_the_answer(self):
        answer = decided(runs_of("r1", 0.8), runs_of("r2", 0.9), full(0.98))
        assert (answer.name, answer.r, answer.separable, answer.relative_parameters) == ("full", None, True, 1.0)
        assert "No LoRA or head-only configuration smaller than full comes within 0.01" in answer.reason

    def test_an_adapter_larger_than_full_fine_tuning_is_no_answer(self):
        assert decided(runs_of("r64", 0.99), full(0.98)).name == "full"

    def test_the_head_alone_can_be_the_answer(self):
        head = runs_of("head", 0.98, method="head", parameters=325)
        assert decided(head, runs_of("r1", 0.98), full(0.98)).name == "head"

    def test_the_base_and_other_baselines_can_not(self):
        base = runs_of("base", 0.98, method="base", parameters=1)
        small = runs_of("full-small", 0.98, method="full", parameters=10)
        assert decided(base, small, runs_of("r1", 0.98), full(0.985)).name == "r1"

    def test_of_equally_small_ones_the_better_is_taken(self):
        other = runs_of("r3", 0.979, parameters=2090)
        assert decided(other, runs_of("r2", 0.98), full(0.98)).name == "r2"

    def test_one_seed_decides_by_its_examples(self):
        answer = decided(runs_of("r1", 0.9725, seeds=1), full(0.98, seeds=1), tolerance=0.0098)
        assert (answer.name, answer.separable, answer.more_seeds_needed) == ("r1", False, None)
        assert "one seed can't decide" in answer.reason

    def test_where_only_examples_could_decide_it_says_so(self):
        answer = decided(runs_of("r1", 0.9725), full(0.98), tolerance=0.0098)
        assert (answer.separable, answer.more_seeds_needed) == (False, None)
        assert "only more validation examples could decide" in answer.reason

    @given(
        st.lists(st.tuples(st.floats(0.9, 0.99), st.floats(0, 0.02)), min_size=1, max_size=5),
        st.sampled_from([0.0, 0.005, 0.01]),
        st.floats(0.01, 0.2),
        st.booleans(),
    )
    def test_a_worse_and_larger_configuration_changes_nothing(self, scores, tolerance, drop, baseline):
        groups = [runs_of(f"r{i}", mean, wobble=wobble, key=i) for i, (mean, wobble) in enumerate(scores, start=1)]
        if baseline:
            groups.append(full(0.97))
        before = decided(*groups, tolerance=tolerance)
        worst = min(run.validation.mean() for group in groups for run in group)
        after = decided(*groups, runs_of("r60", worst - drop), tolerance=tolerance)
        assert _essence(after) == _essence(before)

    @given(st.randoms(use_true_random=False))
    def test_order_of_configurations_does_not_matter(self, random):
        runs = [run for i in (1, 2, 4) for run in runs_of(f"r{i}", 0.95 + 0.01 * i, wobble=0.01, key=i)] + full(0.985)
        assert _essence(decided(random.sample(runs, len(runs)))) == _essence(decided(runs))

    @given(st.lists(st.tuples(st.floats(0.9, 0.99), st.floats(0, 0.02)), min_size=1, max_size=4))
    def test_a_loss_is_an_accuracy_turned_round(self, scores):
        groups = [runs_of(f"r{i}", mean, wobble=wobble, key=i) for i, (mean, wobble) in enumerate(scores, start=1)]
        groups.append(full(0.97))
        losses = [[_wrong(run) for run in group] for group in groups]
        assert _essence(decided(*losses, higher_is_better=False)) == _essence(decided(*groups))


def _wrong(run: RunScore) -> RunScore:
    """The run with its mistakes counted instead of its hits."""
    return RunScore(**{**vars(run), "validation": 1.0 - run.validation})


def _essence(answer):
    return answer.name, answer.reference, answer.separable, answer.more_seeds_needed, answer.reason
