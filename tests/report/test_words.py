"""The answer in words."""

from typing import Any

import pytest
from sample_results import sample_results

from rankwise.errors import flags_named
from rankwise.report import numbers
from rankwise.report.schema import validate
from rankwise.report.words import answer_words, explanation, headline


def test_headline_holds_the_numbers_of_the_answer() -> None:
    results = sample_results()
    results["answer"] |= {"relative_metric": 0.979, "relative_metric_interval": [0.974, 0.983]}
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
    results["runs"] = [run for run in results["runs"] if run["configuration"] != "r4" or run["lr"] == 1e-3]
    results["grid"]["search"] = [{"configuration": "r4", "lr": lr} for lr in searched]
    (r4,) = [c for c in results["configurations"] if c["name"] == "r4"]
    for method, flag in (("lora", "--lr"), ("head", "--head-lr")):
        r4["method"] = method
        with flags_named():
            assert f"give {direction} rates with {flag}." in answer_words(results)
        assert f"give {direction} rates with lrs." in answer_words(results), "in Python"


def test_of_a_metric_below_nothing_there_are_no_shares() -> None:
    """A log likelihood, say: the absolute values are told."""
    results = sample_results()
    results["answer"] |= {"relative_metric": None, "relative_metric_interval": None}
    for c in results["configurations"]:
        c |= {"mean": c["mean"] - 3, "relative_metric": None}
    assert "has a test accuracy of -2.040" in headline(results)
    assert " reaches " not in answer_words(results)


def test_where_nothing_is_gained_the_base_is_the_answer() -> None:
    results = sample_results()
    results["answer"] |= {"verdict": "no_gain", "name": "base", "r": None, "trainable_parameters": 0}
    assert headline(results) == (
        "No gain: fine-tuning is not shown to beat the base (test accuracy 0.330). Use the base, with 0 parameters."
    )
    results["answer"]["gain"] = {"over": "constant", "mean": 0.0, "lower_bound": -0.1}
    assert "always predicting the most frequent class" in headline(results)


def test_results_of_format_1_are_read_as_what_they_show() -> None:
    """Format 1 called a configuration the answer whose mean alone passed."""
    results = sample_results(separable=False)
    old = {k: v for k, v in results["answer"].items() if k not in ("verdict", "confidence", "leaning")}
    old |= {"name": "r4", "separable": False}
    configurations = [
        {k: v for k, v in c.items() if k not in ("p_within", "state")} | {"is_answer": c["name"] == "r4"}
        for c in results["configurations"]
    ]
    read = validate({**results, "format": "rankwise-results-1", "answer": old, "configurations": configurations})
    assert (read["answer"]["verdict"], read["answer"]["name"]) == ("undecided", "full")
    assert read["answer"]["leaning"] == {"name": "r4", "p_within": None}
    assert not any(c["is_answer"] for c in read["configurations"])
    shown = validate({**results, "format": "rankwise-results-1", "answer": old | {"separable": True}})
    assert (shown["answer"]["verdict"], shown["answer"]["name"]) == ("shown", "r4")


def test_no_run_finished() -> None:
    results = sample_results(answer_r=None)
    for run in results["runs"]:
        run["status"] = "diverged"
    assert headline(results) == "No answer: no run finished."


def test_before_the_test_data_is_read() -> None:
    results = sample_results()
    results["answer"]["relative_metric"] = None
    assert headline(results).endswith("does as well on validation data; there are no figures on test data.")


def test_the_reason_is_a_sentence() -> None:
    assert explanation(sample_results(reason="r4 is the least that passes")) == ["r4 is the least that passes."]


def test_missing_numbers_have_a_sign() -> None:
    writers = (
        numbers.count,
        numbers.metric,
        numbers.percent,
        numbers.interval,
        numbers.learning_rate,
        numbers.duration,
    )
    assert {write(None) for write in writers} == {numbers.MISSING}
