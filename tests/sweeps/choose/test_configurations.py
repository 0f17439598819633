"""Learning rates are chosen on validation, by runs that trained to their end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import ConfigError
from rankwise.sweeps.choose.configurations import RunScore, choose_learning_rates, configuration_name, pareto_front


def run(method="lora", r=4, lr=1e-3, seed=0, score=0.9, status="finished", parameters=None, configuration="", n=100):
    """A run whose validation metric has this mean."""
    values = np.full(n, float(score))
    parameters = parameters or (1045 * r if method == "lora" else 54_725)
    name = f"{configuration_name(method, r, configuration)}-lr{lr}-s{seed}"
    return RunScore(
        name=name,
        method=method,
        r=r if method == "lora" else None,
        lr=lr,
        seed=seed,
        trainable_parameters=parameters,
        validation=values,
        configuration=configuration,
        status=status,
    )


class TestLearningRate:
    def test_best_mean_over_seeds_wins(self):
        runs = [
            run(lr=lr, seed=s, score=x)
            for lr, xs in {1e-4: (0.9, 0.8), 1e-3: (0.86, 0.87)}.items()
            for s, x in enumerate(xs)
        ]
        (found,) = choose_learning_rates(runs, higher_is_better=True)
        assert (found.name, found.lr, found.seeds) == ("r4", 1e-3, (0, 1))
        assert found.validation_mean == pytest.approx(0.865)
        assert found.validation((1, 0))[:, 0].tolist() == [0.87, 0.86]

    def test_lowest_mean_wins_for_a_loss(self):
        (found,) = choose_learning_rates([run(lr=1e-4, score=2.0), run(lr=1e-3, score=3.0)], higher_is_better=False)
        assert found.lr == 1e-4

    @pytest.mark.parametrize("status", ["diverged", "pruned", "stopped"])
    def test_a_rate_that_lost_a_seed_loses(self, status):
        runs = [run(lr=1e-3, seed=s, score=0.8) for s in range(2)]
        runs += [run(lr=1e-2, seed=0, score=0.99), run(lr=1e-2, seed=1, score=0.99, status=status)]
        (found,) = choose_learning_rates(runs, higher_is_better=True)
        assert found.lr == 1e-3

    def test_a_metric_that_is_not_finite_counts_as_lost(self):
        (found,) = choose_learning_rates([run(lr=1e-3, score=0.8), run(lr=1e-2, score=np.nan)], higher_is_better=True)
        assert found.lr == 1e-3

    def test_a_rate_with_seeds_still_missing_loses(self):
        runs = [run(lr=1e-3, seed=s, score=0.8) for s in range(2)] + [run(lr=1e-2, seed=0, score=0.99)]
        (found,) = choose_learning_rates(runs, higher_is_better=True)
        assert found.lr == 1e-3

    def test_where_all_rates_lost_a_seed_the_best_of_the_rest_is_taken(self):
        runs = [run(lr=lr, seed=0, score=x) for lr, x in {1e-3: 0.8, 1e-2: 0.9}.items()]
        runs += [run(lr=lr, seed=1, status="diverged") for lr in (1e-3, 1e-2)]
        (found,) = choose_learning_rates(runs, higher_is_better=True)
        assert (found.lr, found.seeds) == (1e-2, (0,))

    def test_where_nothing_counts_the_configuration_is_still_there(self):
        (found,) = choose_learning_rates([run(status="diverged")], higher_is_better=True)
        assert (found.name, found.runs, found.validation_mean) == ("r4", (), None)

    @pytest.mark.parametrize(("best", "edge"), [(1e-4, True), (1e-3, False), (1e-2, True)])
    def test_edge_of_the_grid(self, best, edge):
        runs = [run(lr=lr, score=0.9 if lr == best else 0.8) for lr in (1e-4, 1e-3, 1e-2)]
        assert choose_learning_rates(runs, higher_is_better=True)[0].lr_at_edge_of_grid is edge

    def test_a_diverged_rate_is_part_of_the_grid(self):
        runs = [run(lr=1e-4, score=0.8), run(lr=1e-3), run(lr=1e-2, status="diverged")]
        assert choose_learning_rates(runs, higher_is_better=True)[0].lr_at_edge_of_grid is False

    def test_one_rate_has_no_edge(self):
        assert choose_learning_rates([run()], higher_is_better=True)[0].lr_at_edge_of_grid is False
        assert choose_learning_rates([run("base", lr=None)], higher_is_better=True)[0].lr_at_edge_of_grid is False

    @given(st.randoms(use_true_random=False))
    def test_order_of_runs_does_not_matter(self, random):
        runs = [
            run(m, r, lr, s, score=np.sin(17 * (r or 0) + 1e4 * lr + s))
            for m, r in [("lora", 1), ("lora", 2), ("full", None)]
            for lr in (1e-4, 1e-3)
            for s in range(3)
        ]
        shuffled = random.sample(runs, len(runs))
        first, second = (choose_learning_rates(some, higher_is_better=True) for some in (runs, shuffled))
        assert [(c.name, c.lr, c.seeds, c.validation_mean) for c in first] == [
            (c.name, c.lr, c.seeds, c.validation_mean) for c in second
        ]
        assert [c.name for c in first] == ["r1", "r2", "full"]


class TestGrouping:
    def test_a_name_of_its_own_tells_configurations_apart(self):
        runs = [run("full", None, configuration=c, score=x) for c, x in {"": 0.9, "full-short": 0.8}.items()]
        assert [c.name for c in choose_learning_rates(runs, higher_is_better=True)] == ["full", "full-short"]

    def test_one_name_for_two_is_an_error(self):
        runs = [run(r=2, configuration="attention"), run(r=4, configuration="attention")]
        with pytest.raises(ConfigError, match='2 configurations are named "attention"'):
            choose_learning_rates(runs, higher_is_better=True)

    def test_runs_must_agree_about_their_parameters(self):
        with pytest.raises(ConfigError, match="Runs of r4 train 10 and 20 parameters"):
            choose_learning_rates([run(parameters=10), run(seed=1, parameters=20)], higher_is_better=True)

    def test_a_run_may_be_there_once(self):
        with pytest.raises(ConfigError, match=r"r4 has two runs with lr 0.001 and the same seed"):
            choose_learning_rates([run(), run()], higher_is_better=True)


points = st.dictionaries(st.text(max_size=3), st.tuples(st.integers(1, 9), st.integers(0, 9).map(float)), min_size=1)


class TestParetoFront:
    @given(points, st.booleans())
    def test_is_what_no_other_point_beats(self, points, higher):
        front = set(pareto_front(points, higher))
        for name, (parameters, metric) in points.items():
            beaten = any(
                p <= parameters and (m >= metric if higher else m <= metric) and (p < parameters or m != metric)
                for p, m in points.values()
            )
            assert (name in front) is not beaten

    @given(points)
    def test_a_loss_is_an_accuracy_turned_round(self, points):
        turned = {name: (p, -m) for name, (p, m) in points.items()}
        assert pareto_front(points, True) == pareto_front(turned, False)
