"""What to deploy, under each verdict."""

from typing import Any

import pytest

from rankwise.report.adapter.deploy import adapter_role, deployment
from rankwise.report.words import answer_words, headline
from rankwise.results import Results, Verdict
from rankwise.results.outcomes import Gain
from sample_results import change, sample_results

TRAINED = "The weights of full fine-tuning are not saved: train it again with your own trainer at learning rate 0.0001"


def judged(verdict: Verdict, **values: Any) -> Results:
    results = sample_results((1, 4))
    assert results.answer is not None
    change(results.answer, verdict=verdict, **values)
    return results


FULL = {"name": "full", "r": None, "adapter": None}
OVER_CONSTANT = Gain(over="constant", mean=0.0, lower_bound=-0.1)


@pytest.mark.parametrize(
    ("results", "first", "then"),
    [
        (judged("shown"), "Shown: r = 4", "Deploy r = 4 (adapters/r4-lr0.001-s0), as an adapter or merged into"),
        (judged("nothing_smaller", **FULL), "use full fine-tuning", f"{TRAINED}."),
        (judged("no_gain", **FULL), "Use the base, with 0 parameters.", None),
        (judged("no_gain", gain=OVER_CONSTANT, **FULL), "always predicting", "Deploy none of these: look at data"),
        (judged("undecided"), "Until it is decided, use full fine-tuning", f"{TRAINED}, or deploy an adapter whose"),
    ],
    ids=["shown", "nothing smaller", "no gain", "no gain over a constant", "undecided"],
)
def test_headline_and_advice_say_what_to_deploy(results: Results, first: str, then: str | None) -> None:
    assert first in headline(results)
    advice = deployment(results)
    if then is None:
        assert advice is None
    else:
        assert (advice or "").startswith(then)
        assert (advice or "") in answer_words(results)


def test_a_head_alone() -> None:
    results = judged("shown", name="head")
    (first, *_) = results.configurations
    change(first, name="head", label="head alone", method="head")
    assert deployment(results) == (
        "Deploy the base with its trained head (adapters/r4-lr0.001-s0); A and B of that adapter add nothing."
    )


def test_an_adapter_is_told_from_the_others() -> None:
    results = judged("shown")
    roles = {run.name: adapter_role(results, run) for run in results.runs if run.adapter}
    assert roles["r4-lr0.001-s0"] == "The sweep recommends this adapter."
    assert roles["r4-lr0.001-s1"] == "The sweep does not recommend this adapter; its size is shown to be enough."
    assert roles["r1-lr0.001-s0"].endswith("is shown to be worse than the reference by more than the tolerance.")
    unfinished = sample_results((1, 4), complete=False)
    assert "not complete" in adapter_role(unfinished, unfinished.runs[0])
    alone = sample_results((4,), baselines=[])
    assert "trained alone" in adapter_role(alone, alone.runs[0])
