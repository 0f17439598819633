"""The answer in words."""

from typing import Any

import pytest
from sample_results import sample_results

from rankwise.report import numbers
from rankwise.report.words import answer_words, explanation, headline


def test_headline_holds_the_numbers_of_the_answer() -> None:
    results = sample_results()
    results["answer"] |= {"relative_metric": 0.979, "relative_metric_interval": [0.974, 0.983]}
    assert headline(results) == (
        "r = 4: 4,180 parameters (7.6% of full fine-tuning) reach 97.9% of its test accuracy "
        "(95% interval 97.4 to 98.3)."
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"separable": True, "reason": None}, "its 95% bound, too, lies within the tolerance of 0.025."),
        ({"separable": False, "reason": None}, "its 95% bound does not; about 3 more seeds would do."),
        ({"edge": ["r4"]}, "The best learning rate of r = 4 lies at the edge of the grid"),
        ({"edge": ["r4", "full"]}, "The best learning rate of r = 4 and of full fine-tuning lies at the edge"),
        ({"seeds": 1}, "With one seed the intervals hold only the error of sampling test examples"),
        ({"complete": False}, "The sweep is not complete (120 runs finished so far), so the answer may still change."),
        ({"baselines": [("LoRA's budget", 0.98)]}, "(7.6% of full fine-tuning, LoRA's budget) reach"),
        (
            {"ranks": [4], "baselines": []},
            "4,180 parameters, test accuracy 0.960 (95% interval 0.957 to 0.963); the base has 0.330.",
        ),
        ({"ranks": [4], "baselines": [], "base_metric": None}, "there is nothing to hold it against."),
        ({"baselines": [], "answer_r": 64}, "nothing smaller comes close enough to it."),
        (
            {"metric": "loss", "higher_is_better": False},
            "give a test loss of 0.040 (95% interval 0.037 to 0.043), against 0.016; lower is better.",
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
    assert f"give {direction} rates with --lr" in answer_words(results)
    (r4,) = [c for c in results["configurations"] if c["name"] == "r4"]
    r4["method"] = "head"
    assert f"give {direction} rates with --head-lr" in answer_words(results)


def test_of_a_metric_below_nothing_there_are_no_shares() -> None:
    """A log likelihood, say: the absolute values are told."""
    results = sample_results()
    results["answer"] |= {"relative_metric": None, "relative_metric_interval": None}
    for c in results["configurations"]:
        c |= {"mean": c["mean"] - 3, "relative_metric": None}
    assert "give a test accuracy of -2.040" in headline(results)
    assert " reach " not in answer_words(results)


def test_one_more_seed() -> None:
    results = sample_results(separable=False, reason=None)
    results["answer"]["more_seeds_needed"] = 1
    assert "about 1 more seed would do" in answer_words(results)
    results["answer"]["more_seeds_needed"] = None
    assert "its 95% bound does not. Of full" in answer_words(results)


def test_an_answer_without_a_name_gives_its_reason() -> None:
    results = sample_results(answer_r=None)
    results["answer"] = sample_results()["answer"] | {"name": None, "reason": "nothing passes"}
    assert headline(results) == "No answer: nothing passes."


def test_no_run_finished() -> None:
    results = sample_results(answer_r=None)
    for run in results["runs"]:
        run["status"] = "diverged"
    assert headline(results) == "No answer: no run finished."


def test_before_the_test_data_is_read() -> None:
    results = sample_results()
    results["answer"]["relative_metric"] = None
    assert headline(results).endswith("do as well on validation data; there are no figures on test data.")


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
