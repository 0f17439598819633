"""The answer in words."""

import re
from typing import Any

import pytest

from rankwise.errors import flags_named
from rankwise.report import numbers
from rankwise.report.words import answer_words, explanation, headline, trade_off
from rankwise.results import AnswerResult, Results
from rankwise.results.origin import SearchedRate
from rankwise.results.outcomes import Gain
from sample_results import change, sample_results


def answer_of(results: Results) -> AnswerResult:
    assert results.answer is not None
    return results.answer


def test_headline_holds_the_numbers_of_the_answer() -> None:
    results = sample_results()
    change(answer_of(results), relative_metric=0.979, relative_metric_interval=(0.974, 0.983))
    assert headline(results) == (
        "Shown: r = 4, 4,180 parameters (7.6% of full fine-tuning), reaches 97.9% of its test accuracy "
        "(95% interval 97.4 to 98.3)."
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"separable": False}, "Undecided: nothing smaller than full fine-tuning is shown to do as well."),
        ({"separable": False}, "r = 4 more likely than not does (73%)."),
        ({"separable": False}, "use full fine-tuning, 54,725 parameters, test accuracy 0.984"),
        ({"edge": ["r4"]}, "The best learning rate of r = 4 lies at the edge of the grid"),
        ({"edge": ["r4", "full"]}, "The best learning rate of r = 4 and of full fine-tuning lies at the edge"),
        ({"seeds": 1}, "With one seed the intervals hold only the error of sampling test examples"),
        ({"complete": False}, "The sweep is not complete (120 runs finished so far), so the answer may still change."),
        ({"baselines": [("LoRA's budget", 0.98)]}, "(7.6% of full fine-tuning, LoRA's budget), reaches"),
        (
            {"ranks": [4], "baselines": []},
            "4,180 parameters, test accuracy 0.960 (95% interval 0.957 to 0.963); the base has 0.330.",
        ),
        ({"ranks": [4], "baselines": [], "base_metric": None}, "there is nothing to compare it with."),
        ({"baselines": [], "answer_r": 64}, "Nothing smaller will do: use r = 64, 66,880 parameters"),
        (
            {"metric": "loss", "higher_is_better": False},
            "has a test loss of 0.040 (95% interval 0.037 to 0.043), against 0.016; lower is better.",
        ),
        ({"answer_r": None}, "No answer: no configuration comes close enough to the reference."),
        ({"answer_r": None, "complete": False}, "No answer yet: the sweep is not complete"),
    ],
    ids=str,
)
def test_what_is_said(given: dict[str, Any], expected: str) -> None:
    assert expected in answer_words(sample_results(**given))


def test_an_edge_that_does_not_touch_the_answer_is_not_said_here() -> None:
    assert "edge" not in answer_words(sample_results(edge=["r1"]))


@pytest.mark.parametrize(("searched", "direction"), [((1e-4, 1e-3), "higher"), ((1e-3, 1e-2), "lower"), ((), "lower")])
def test_after_a_search_the_rates_to_add_lie_beyond_those_searched(searched: tuple[float, ...], direction: str) -> None:
    """Only the rate that was found is among the runs then."""
    results = sample_results(edge=["r4"])
    results.runs = [run for run in results.runs if run.configuration != "r4" or run.lr == 1e-3]
    results.grid.search = [SearchedRate(configuration="r4", lr=lr) for lr in searched]
    (r4,) = [c for c in results.configurations if c.name == "r4"]
    for method, flag in (("lora", "--lr"), ("head", "--head-lr")):
        r4.method = method
        with flags_named():
            assert f"give {direction} rates with {flag}." in answer_words(results)
        assert f"give {direction} rates with lrs." in answer_words(results), "in Python"


def test_of_a_metric_below_nothing_there_are_no_shares() -> None:
    """A log likelihood, say: the absolute values are told."""
    results = sample_results()
    change(answer_of(results), relative_metric=None, relative_metric_interval=None)
    for c in results.configurations:
        change(c, mean=(c.mean or 0) - 3, relative_metric=None)
    assert "has a test accuracy of -2.040" in headline(results)
    assert " reaches " not in answer_words(results)


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({}, ["r = 1", "r = 2", "r = 4", "r = 8", "r = 16", "r = 32"]),
        ({"separable": False}, ["r = 1", "r = 2", "r = 4", "r = 8", "r = 16", "r = 32"]),
        ({"baselines": [], "ranks": [1, 2, 4], "answer_r": 2}, ["r = 1", "r = 2"]),
        ({"baselines": [], "ranks": [1, 2, 4], "answer_r": 2, "separable": False}, []),
        ({"ranks": [4, 64], "baselines": [("full fine-tuning", 0.95)]}, ["r = 4"]),
    ],
    ids=str,
)
def test_shares_are_those_of_smaller_adapters_of_something_known(given: dict[str, Any], shares: list[str]) -> None:
    """An adapter is no share of itself, and nothing is good enough for an undecided sweep without a baseline."""
    results = sample_results(**given)
    for c in results.configurations:
        c.on_pareto_front = True
    said = " ".join(trade_off(results))
    assert re.findall(r"r = \d+(?=:)", said) == shares


def test_where_nothing_smaller_was_tried_nothing_smaller_is_compared() -> None:
    results = sample_results([4, 8], baselines=[], answer_r=4, separable=False)
    change(answer_of(results), reference="r4", name="r4", leaning=None)
    for c in results.configurations:
        c.state = "open" if c.name == "r8" else None
    assert headline(results) == (
        "Undecided: nothing smaller than r = 4 was tried. Until something is, use r = 4, 4,180 parameters, test "
        "accuracy 0.960 (95% interval 0.957 to 0.963)."
    )
    results.configurations.insert(0, sample_results([1], answer_r=1).configurations[0])
    assert headline(results).startswith("Undecided: nothing smaller than r = 4 is shown to do as well. Until it is")


def test_where_nothing_is_gained_the_base_is_the_answer() -> None:
    results = sample_results()
    change(answer_of(results), verdict="no_gain", name="base", r=None, trainable_parameters=0)
    assert headline(results) == (
        "No gain: fine-tuning is not shown to beat the base (test accuracy 0.330). Use the base, with 0 parameters."
    )
    answer_of(results).gain = Gain(over="constant", mean=0.0, lower_bound=-0.1)
    assert "always predicting the most frequent class" in headline(results)
    assert trade_off(results) == []


def test_no_run_finished() -> None:
    results = sample_results(answer_r=None)
    for run in results.runs:
        run.status = "diverged"
    assert headline(results) == "No answer: no run finished."


def test_before_the_test_data_is_read() -> None:
    results = sample_results()
    answer_of(results).relative_metric = None
    assert headline(results).endswith("does as well on validation data; there are no figures on test data.")


def test_the_reason_is_a_sentence() -> None:
    assert explanation(sample_results(reason="r4 is the least that passes")) == ["r4 is the least that passes."]


def test_missing_numbers_have_a_sign() -> None:
    writers = (
        numbers.count,
        numbers.metric,
        numbers.percent,
        numbers.interval_text,
        numbers.learning_rate,
        numbers.duration_text,
    )
    assert {write(None) for write in writers} == {numbers.MISSING}
