"""The content of `results.json`: it follows the shipped schema, and the answer is that of the runs."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from rankwise.report import answer_words, terminal_table
from rankwise.results import parsed
from rankwise.results.schema import shipped_schema
from rankwise.sweeps.problem import SweepState
from rankwise.sweeps.record import recommended_adapter
from small_sweep import results_of, small_run, small_runs, swept


@pytest.fixture(scope="module")
def found() -> SweepState:
    return swept(small_runs())


@pytest.fixture(scope="module")
def results(found: SweepState) -> dict[str, Any]:
    return results_of(found)


def check(results: dict[str, Any]) -> None:
    as_read = json.loads(json.dumps(results, allow_nan=False))
    jsonschema.Draft202012Validator(shipped_schema()).validate(as_read)
    terminal_table(parsed(as_read))
    assert answer_words(parsed(as_read))


def test_follows_the_schema(results: dict[str, Any]) -> None:
    check(results)


def test_configurations_are_means_of_their_runs(found: SweepState, results: dict[str, Any]) -> None:
    runs = {run["name"]: run for run in results["runs"]}
    deciding = {name: scores.decisive.mean() for name, scores in found.scores.items()}
    assert [c["name"] for c in results["configurations"]] == ["r1", "r4", "full"]
    for c in results["configurations"]:
        own = [runs[name] for name in c["runs"]]
        assert {run["lr"] for run in own} == {c["lr"]}
        assert c["n_seeds"] == len(own) == 2
        assert c["mean"] == pytest.approx(np.mean([run["metric"] for run in own]))
        assert c["validation_mean"] == pytest.approx(np.mean([deciding[run["name"]] for run in own]))
        assert c["interval"][0] <= c["mean"] <= c["interval"][1]
        elsewhere = [run["other_metrics"]["accuracy_elsewhere"] for run in own]
        assert c["other_metrics"]["accuracy_elsewhere"]["mean"] == pytest.approx(np.mean(elsewhere))
        for lr in {run["lr"] for run in results["runs"]}:
            at = [deciding[r["name"]] for r in results["runs"] if (r["configuration"], r["lr"]) == (c["name"], lr)]
            assert np.mean(at) <= c["validation_mean"] + 1e-6, "the rate is chosen on validation data"


def test_the_answer_is_one_of_the_configurations(results: dict[str, Any]) -> None:
    by_name = {c["name"]: c for c in results["configurations"]}
    answer = results["answer"]
    chosen, reference = by_name[answer["name"]], by_name[answer["reference"]]
    assert reference["name"] == "full"
    shown = [chosen["name"]] if answer["verdict"] != "undecided" else []
    assert [c["name"] for c in by_name.values() if c["is_answer"]] == shown
    assert [c["name"] for c in by_name.values() if c["is_reference"]] == ["full"]
    assert answer["tolerance"] == pytest.approx(0.01 * reference["validation_mean"])
    assert answer["relative_metric"] == pytest.approx(chosen["mean"] / reference["mean"])
    assert answer["relative_parameters"] == chosen["trainable_parameters"] / 83
    assert chosen["difference_to_reference"]["mean"] == pytest.approx(chosen["mean"] - reference["mean"], abs=1e-6)


def test_a_wide_tolerance_makes_the_smallest_the_answer(found: SweepState) -> None:
    results = results_of(found, tolerance=0.99)
    assert (results["answer"]["name"], results["answer"]["r"]) == ("r1", 1)
    check(results)


def test_what_solves_another_problem_is_neither_reference_nor_answer(found: SweepState) -> None:
    results = results_of(found, comparable=["r1", "r4"])
    assert results["answer"]["reference"] in ("r1", "r4")
    full = next(c for c in results["configurations"] if c["name"] == "full")
    assert full["mean"] is not None
    assert not full["is_reference"]
    assert full["difference_to_reference"] is None


def test_an_unfinished_sweep_has_no_answer(found: SweepState) -> None:
    names = [name for name in found.outcomes if name.startswith("r1")]
    part = SweepState(
        found.runs,
        found.parameters,
        {name: found.outcomes[name] for name in names},
        {name: found.scores[name] for name in names},
        packs=found.packs,
    )
    results = results_of(part)
    check(results)
    assert results["complete"] is False
    assert results["answer"] is None
    stopped = [run for run in results["runs"] if run["status"] == "stopped"]
    assert len(stopped) == 8
    assert all(run["metric"] is None and run["reason"] == "interrupted" for run in stopped)
    assert "not complete (4 runs finished so far)" in answer_words(parsed(results))


def test_diverged_runs_are_told_and_count_for_nothing() -> None:
    results = results_of(swept([small_run("r1"), small_run("r4", lr=1e30), small_run("full")]))
    check(results)
    assert results["notes"] == ["Diverged, and left out: r4-lr1e+30-s0."]
    r4 = next(c for c in results["configurations"] if c["name"] == "r4")
    assert r4["mean"] is None
    assert r4["n_seeds"] == 0


def test_nothing_but_diverged_runs() -> None:
    results = results_of(swept([small_run("r1", lr=1e30), small_run("full", lr=1e30)]))
    check(results)
    assert results["answer"] is None
    assert results["relative_to"] is None


@pytest.mark.parametrize("which", [["r1"], ["r1", "r4", "full"]])
def test_nothing_right_on_test_data(which: list[str]) -> None:
    found = swept([small_run(name, seed) for name in which for seed in (0, 1)])
    for name, scores in found.scores.items():
        found.scores[name] = replace(scores, test=np.zeros_like(scores.test))
    results = results_of(found)
    check(results)
    assert results["answer"]["relative_metric"] is None
    assert results["answer"]["relative_metric_interval"] is None


def test_an_interval_of_hits_lies_between_0_and_1() -> None:
    found = swept([small_run(name, seed) for name in ("r1", "full") for seed in (0, 1)])
    for i, (name, scores) in enumerate(sorted(found.scores.items())):
        hits = np.ones_like(scores.test)
        hits[: i % 2] = 0
        found.scores[name] = replace(scores, test=hits)
    for c in results_of(found)["configurations"]:
        assert 0 <= c["interval"][0] <= c["mean"] <= c["interval"][1] <= 1


def test_the_share_of_the_metric_is_that_of_the_seeds_in_its_interval() -> None:
    """A seed that only one of them has would move the share out of its own interval."""
    found = swept([*(small_run("r1", seed) for seed in (0, 1, 2)), *(small_run("full", seed) for seed in (0, 1))])
    for name, scores in found.scores.items():
        share = 0.2 if name.endswith("s2") else 0.8
        found.scores[name] = replace(scores, test=(np.arange(len(scores.test)) < share * len(scores.test)) * 1.0)
    answer = results_of(found, tolerance=0.99)["answer"]
    assert answer["relative_metric"] == pytest.approx(1.0)
    low, high = answer["relative_metric_interval"]
    assert low <= answer["relative_metric"] <= high


def test_where_the_answer_is_a_head_alone_its_folder_is_recommended() -> None:
    from rankwise.sweeps.choose.answer import decide
    from rankwise.sweeps.choose.comparison import Comparison
    from rankwise.sweeps.choose.configurations import RunScore, choose_learning_rates
    from rankwise.sweeps.choose.rule import Rule, Tolerance

    sizes = {"head": ("head", None, 5), "r1": ("lora", 1, 20), "r2": ("lora", 2, 40), "full": ("full", None, 900)}
    hits = np.arange(1000) < 970
    runs = [
        RunScore(
            name=f"{name}-s{s}",
            method=method,
            r=r,
            lr=1e-3,
            seed=s,
            trainable_parameters=n,
            validation=hits,
            configuration=name,
        )
        for name, (method, r, n) in sizes.items()
        for s in range(3)
    ]
    by_name = {c.name: c for c in choose_learning_rates(runs, True)}
    answer = decide(list(by_name.values()), by_name["full"], Rule(Tolerance(absolute=0.02), True))
    assert (answer.name, answer.verdict) == ("head", "shown")
    assert isinstance(answer.comparisons["r1"], Comparison)
    folders = {f"{name}-s{s}": f"adapters/{name}-s{s}" for name in ("head", "r1", "r2") for s in range(3)}
    assert recommended_adapter(answer, by_name, folders, True) == "adapters/head-s0"
