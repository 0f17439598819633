"""Results of format 1 as those of format 2."""

from typing import Any, cast

from rankwise.results.content import FORMAT

OLD_FORMAT = "rankwise-results-1"


def upgraded(results: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file of format 1 as that of a file of format 2.

    Format 1 named the smallest configuration whose mean passed where none passed by its bound, and called the reference
    an answer after no test: both are undecided here. What is of another kind than format 1 has is left as it is.
    """
    answer, configurations = results.get("answer"), results.get("configurations")
    shown = isinstance(answer, dict) and _was_shown(cast("dict[str, Any]", answer))
    if isinstance(configurations, list):
        configurations = [
            {"p_within": None, "state": None, **c, "is_answer": c.get("is_answer", False) and shown}
            if isinstance(c, dict)
            else c
            for c in cast("list[dict[str, Any]]", configurations)
        ]
    if isinstance(answer, dict):
        answer = _upgraded_answer(cast("dict[str, Any]", answer), configurations, shown)
    changed = {"configurations": configurations, "answer": answer}
    return {**results, "format": FORMAT} | {key: value for key, value in changed.items() if key in results}


def _was_shown(answer: dict[str, Any]) -> bool:
    return bool(answer.get("separable") and answer.get("name") != answer.get("reference"))


def _upgraded_answer(answer: dict[str, Any], configurations: Any, shown: bool) -> dict[str, Any]:
    leaning = None if shown or answer.get("name") == answer.get("reference") else answer.get("name")
    new = {
        **answer,
        "verdict": "shown" if shown else "undecided",
        "confidence": 0.95,
        "leaning": leaning and {"name": leaning, "p_within": None},
        "detectable_difference": None,
        "separable": shown,
        "reason": answer.get("reason") if shown else None,
    }
    if not leaning:
        return new
    known = [c for c in configurations if isinstance(c, dict)] if isinstance(configurations, list) else []
    reference = next((c for c in known if c.get("name") == answer.get("reference")), {})
    return new | {
        "name": answer.get("reference"),
        "r": reference.get("r"),
        "adapter": None,
        "relative_parameters": 1.0,
        "trainable_parameters": reference.get("trainable_parameters"),
        "relative_metric": None,
        "relative_metric_interval": None,
    }
