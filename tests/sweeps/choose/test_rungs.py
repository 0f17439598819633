"""Rungs: who leaves, and that the answer stays possible."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import ConfigError
from rankwise.sweeps.choose.configurations import RunScore
from rankwise.sweeps.choose.rungs import worst_runs
from rankwise.sweeps.run.run import run_sweep
from rankwise.train.events import Observers
from small_sweep import small_model, small_problem, small_run, small_runs

N = 50


def score(r: int | None, lr: float, share: float, seed: int = 0, **given: Any) -> RunScore:
    """A run that is right on the first examples; r None is full fine-tuning."""
    about = {"method": "full" if r is None else "lora", "trainable_parameters": 10_000 if r is None else 100 * r}
    name = f"{'full' if r is None else f'r{r}'}-lr{lr:g}-s{seed}"
    validation = (np.arange(N) < round(share * N)).astype(np.float32)
    return RunScore(**{"name": name, "r": r, "lr": lr, "seed": seed, "validation": validation, **about, **given})


def leaving(*scores: RunScore, up: bool = True) -> list[str]:
    return sorted(worst_runs(scores, up, 4))


def test_the_worse_half_of_the_rates_leaves() -> None:
    rates = [score(4, lr, share) for lr, share in ((0.1, 0.5), (0.2, 0.9), (0.3, 0.7))]
    assert leaving(*rates) == ["r4-lr0.1-s0"], "of three, two stay"
    assert leaving(*rates, up=False) == ["r4-lr0.2-s0"]
    assert worst_runs(rates, True, 4) == {
        "r4-lr0.1-s0": "at 4 epochs its learning rate was not in the better half of those of r4"
    }


def test_seeds_leave_together() -> None:
    # The first rate is better by its mean, though worse in one seed.
    rates = [score(4, 0.1, 0.9, 0), score(4, 0.1, 0.3, 1), score(4, 0.2, 0.5, 0), score(4, 0.2, 0.5, 1)]
    assert leaving(*rates) == ["r4-lr0.2-s0", "r4-lr0.2-s1"]


def test_equal_rates_go_to_the_smaller() -> None:
    assert leaving(score(4, 0.2, 0.5), score(4, 0.1, 0.5)) == ["r4-lr0.2-s0"]


def test_a_rate_that_lost_a_seed_leaves_first() -> None:
    lost = score(4, 0.1, 0.99, 1, status="diverged", validation=np.empty(0))
    assert leaving(score(4, 0.1, 0.99), lost, score(4, 0.2, 0.5), score(4, 0.2, 0.5, 1)) == [
        "r4-lr0.1-s0",
        "r4-lr0.1-s1",
    ]
    several = [score(4, 0.3, 0.8), score(4, 0.3, 0.8, 1), score(4, 0.4, 0.7), score(4, 0.4, 0.7, 1)]
    assert leaving(score(4, 0.1, 0.99), lost, *several) == ["r4-lr0.1-s0", "r4-lr0.1-s1"]


def test_a_rate_that_is_alone_stays_whatever_it_does() -> None:
    assert leaving(score(4, 0.1, 0.0)) == []
    assert leaving(score(None, 0.1, 0.0), score(4, 0.1, 0.9), score(8, 0.1, 0.9)) == []


def test_those_that_left_before_do_not_count() -> None:
    gone = [score(4, lr, 0.99, status="pruned") for lr in (0.1, 0.2)]
    assert leaving(*gone, score(4, 0.3, 0.5), score(4, 0.4, 0.6)) == ["r4-lr0.3-s0"]


def test_rates_come_before_ranks() -> None:
    # r8 is clearly worse than r4, but its rates are not settled: the other one may be better later.
    r4, r8 = (
        score(4, 0.1, 0.98),
        [score(8, lr, share) for lr, share in ((0.1, 0.2), (0.2, 0.19), (0.3, 0.18), (0.4, 0))],
    )
    assert leaving(r4, *r8) == ["r8-lr0.3-s0", "r8-lr0.4-s0"]
    assert leaving(r4, *r8[:1]) == ["r8-lr0.1-s0"]
    assert (
        worst_runs([r4, r8[0]], True, 4)["r8-lr0.1-s0"] == "at 4 epochs r4 was better with fewer trainable parameters"
    )


def test_a_rank_stays_that_is_better_or_smaller_or_not_clearly_worse() -> None:
    assert leaving(score(4, 0.1, 0.5), score(8, 0.1, 0.98)) == []
    assert leaving(score(4, 0.1, 0.98), score(8, 0.1, 0.96)) == [], "two of fifty examples may be chance"


def test_the_baseline_is_out_of_it() -> None:
    assert leaving(score(4, 0.1, 0.98), score(None, 0.1, 0.1)) == []
    assert leaving(score(4, 0.1, 0.98), score(None, 0.1, 0.1), score(None, 0.2, 0.2)) == ["full-lr0.1-s0"]


shares = st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.9, 0.94, 0.98, 1.0])


@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.lists(shares, min_size=1, max_size=4)),
        min_size=1,
        max_size=6,
        unique_by=lambda c: c[0],
    ),
    st.lists(shares, min_size=0, max_size=3),
    st.floats(0, 0.3),
    st.booleans(),
)
def test_the_smallest_within_the_tolerance_and_the_best_always_stay(
    ranks: list[tuple[int, list[float]]], full: list[float], tolerance: float, up: bool
) -> None:
    scores = [score(r, 0.1 * (i + 1), share) for r, rates in ranks for i, share in enumerate(rates)]
    scores += [score(None, 0.1 * (i + 1), share) for i, share in enumerate(full)]
    gone = worst_runs(scores, up, 4)

    def best(left: list[RunScore]) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for each in left:
            mean = float(each.validation.mean()) * (1 if up else -1)
            name = each.configuration_name
            found[name] = (each.trainable_parameters, max(mean, found.get(name, (0, -np.inf))[1]))
        return found

    before, after = best(scores), best([each for each in scores if each.name not in gone])
    assert all(after[name] == before[name] for name in after), "what stays has its best rate"
    for reference in {max(mean for _, mean in before.values()), before.get("full", (0, -np.inf))[1]}:
        able = {name: parameters for name, (parameters, mean) in before.items() if mean >= reference - tolerance}
        smallest = min(able, key=lambda name: able[name])
        assert smallest in after
    assert not full or "full" in after


def test_a_sweep_with_rungs() -> None:
    runs = [small_run(c, seed, lr) for c in ("r1", "r4", "full") for lr in (1e-5, 1e-4, 0.003, 0.03) for seed in (0, 1)]
    found = run_sweep(small_model(), runs, small_problem(), Observers(), rungs=(1, 2))
    assert found.complete
    for configuration in ("r1", "r4", "full"):
        own = [run for run in runs if run.configuration == configuration]
        epochs = {run.training.lr: found.outcomes[run.name].epochs for run in own}
        assert sorted(epochs.values()) == [1, 1, 2, 3], "two rates leave, then one"
        for run in own:
            outcome = found.outcomes[run.name]
            assert outcome.status == ("finished" if outcome.epochs == 3 else "pruned")
            assert (run.name in found.scores) == (outcome.status == "finished")
            # Its points end where it left.
            assert len([point for point in found.curve if point.run == run.name]) == outcome.epochs


def test_who_stays_is_as_without_the_others() -> None:
    """A run that stays has the weights, to rounding, that it has without rungs."""
    with_rungs = run_sweep(small_model(), small_runs(), small_problem(), Observers(), rungs=(1,))
    without = run_sweep(small_model(), small_runs(), small_problem(), Observers())
    stayed = [name for name, outcome in with_rungs.outcomes.items() if outcome.status == "finished"]
    assert len(stayed) == 6
    for name in stayed:
        for key, value in with_rungs.outcomes[name].state.items():
            np.testing.assert_allclose(value.numpy(), without.outcomes[name].state[key].numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rungs", [(2, 1), (0, 1), (1, 1)])
def test_rungs_rise(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="give rising numbers of epochs"):
        run_sweep(small_model(), small_runs(), small_problem(), Observers(), rungs=rungs)
