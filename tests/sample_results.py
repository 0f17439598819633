"""Results as a sweep would write them, made up from a formula, to draw and describe."""

import math
from collections.abc import Sequence
from typing import Any

from rankwise.results import Results, parsed
from rankwise.results.record import Record

RANKS = (1, 2, 4, 8, 16, 32, 64)
LRS = (1e-4, 3e-4, 1e-3)
FULL = 54_725
PUBLISHED = {1: 0.875, 2: 0.931, 4: 0.964, 8: 0.971, 16: 0.977, 32: 0.980, 64: 0.980}


def lora_accuracy(r: int) -> float:
    """Rises with r and levels off, as on the digits."""
    return 0.981 - 0.11 * r**-1.2


def sample_content(
    ranks: Sequence[int] = RANKS,
    *,
    baselines: Sequence[tuple[str, float]] = (("full fine-tuning", 0.984),),
    published: bool = False,
    answer_r: int | None = 4,
    separable: bool = True,
    reason: str | None = "The fewest trainable parameters whose validation accuracy is within the tolerance.",
    seeds: int = 5,
    complete: bool = True,
    edge: Sequence[str] = (),
    half_width: float = 0.003,
    metric: str = "accuracy",
    higher_is_better: bool = True,
    forgetting: bool = True,
    base_metric: float | None = 0.33,
) -> dict[str, Any]:
    """Build the content of a valid `results.json`.

    Args:
        ranks: One configuration each.
        baselines: Label and test metric of each full fine-tuning; the last is the reference.
        published: Put a published table beside.
        answer_r: The rank that is the answer; None for no answer.
        separable: Whether the answer's bound passes.
        reason: Of the answer.
        seeds: How many.
        complete: Whether the sweep ended.
        edge: Names of configurations whose learning rate lies at the grid's edge.
        half_width: Of every interval.
        metric: Its name.
        higher_is_better: False turns the curve round: a loss of 1 minus the accuracy.
        forgetting: Whether there is accuracy on 0-4.
        base_metric: The base's own.
    """
    turn = (lambda x: x) if higher_is_better else (lambda x: 1 - x)
    names = ["full" if i == len(baselines) - 1 else f"full-{i}" for i in range(len(baselines))]
    rows = [(f"r{r}", f"r = {r}", "lora", r, 1045 * r, turn(lora_accuracy(r))) for r in ranks]
    rows += [
        (name, label, "full", None, FULL, turn(value)) for name, (label, value) in zip(names, baselines, strict=True)
    ]
    best = max(rows, key=lambda row: row[5] if higher_is_better else -row[5])
    reference = rows[-1] if baselines else best
    relative = {"label": reference[1], "metric": reference[5], "trainable_parameters": reference[4]}
    if published:
        relative = {"label": "the published baseline", "metric": 0.984, "trainable_parameters": FULL}
    runs: list[dict[str, Any]] = []
    configurations: list[dict[str, Any]] = []
    for name, label, method, r, parameters, value in rows:
        chosen = 1e-3 if method == "lora" else 1e-4
        lrs = LRS if method == "lora" else [lr / 10 for lr in LRS]
        for lr in lrs:
            for seed in range(seeds):
                runs.append(_run(name, method, r, lr, seed, parameters, value, chosen=math.isclose(lr, chosen)))
        interval = [value - half_width, value + half_width]
        difference = (value - reference[5]) * (1 if higher_is_better else -1)
        other = {"accuracy_on_0_4": {"mean": 0.5 + 0.1 / (r or 100), "interval": [0.48, 0.62]}} if forgetting else {}
        configurations.append(
            {
                "name": name,
                "label": label,
                "method": method,
                "r": r,
                "lr": chosen,
                "lr_at_edge_of_grid": name in edge,
                "n_seeds": seeds,
                "trainable_parameters": parameters,
                "validation_mean": value - 0.001,
                "mean": value,
                "interval": interval,
                "validation_difference_to_reference": {"mean": difference, "lower_bound": difference - half_width},
                "p_within": None
                if name == reference[0]
                else 0.99
                if method == "lora" and r >= (answer_r or 0)
                else 0.02,
                "state": None
                if name == reference[0]
                else "shown"
                if method == "lora" and r >= (answer_r or 0)
                else "not",
                "difference_to_reference": {
                    "mean": difference,
                    "interval": [difference - half_width, difference + half_width],
                },
                "relative_parameters": parameters / relative["trainable_parameters"],
                "relative_metric": value / relative["metric"],
                "on_pareto_front": method == "lora" and r <= 32,
                "is_reference": name == reference[0],
                "is_answer": method == "lora" and r == answer_r,
                "other_metrics": other,
                "runs": [run["name"] for run in runs if run["name"].startswith(f"{name}-lr{chosen:g}-")],
            }
        )
    answer = None
    if answer_r is not None:
        _, _, _, r, parameters, value = next(row for row in rows if row[3] == answer_r)
        if not separable:
            configurations = [c | {"is_answer": False} for c in configurations]
        share = value / reference[5]
        answer = {
            "name": f"r{r}",
            "r": r,
            "adapter": f"adapters/r{r}-lr0.001-s0",
            "verdict": "nothing_smaller" if reference[3] == r else "shown" if separable else "undecided",
            "confidence": 0.95,
            "leaning": None if separable else {"name": f"r{r}", "p_within": 0.73},
            "detectable_difference": 0.0098,
            "reference": reference[0],
            "tolerance": 0.025 * max(reference[5], 1 - reference[5]),
            "trainable_parameters": parameters,
            "relative_parameters": parameters / reference[4],
            "relative_metric": share,
            "relative_metric_interval": [share - 0.004, share + 0.004],
            "separable": separable,
            "more_seeds_needed": 0 if separable else 3,
            "reason": reason,
        }
    return {
        "format": "rankwise-results-2",
        "complete": complete,
        "task": "digits",
        "command": "rankwise digits --seeds 5",
        "config_hash": "0123456789abcdef",
        "started": "2025-01-31T12:00:00+00:00",
        "seconds": 754.2,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "rankwise": "0.1.0"},
        "device": "cpu",
        "data": {
            name: {"n": n, "sha256": "ab" * 32} for name, n in (("train", 3500), ("validation", 500), ("test", 997))
        },
        "metric": {"name": metric, "higher_is_better": higher_is_better},
        "base": {"name": "mlp", "sha256": "cd" * 32, "parameters": FULL, "metric": base_metric},
        "runs": runs,
        "configurations": configurations,
        "relative_to": relative,
        "published": _published() if published else None,
        "notes": [],
        "grid": {"ranks": list(ranks), "lrs": list(LRS), "seeds": list(range(seeds))},
        "answer": answer,
    }


def sample_results(*args: Any, **given: Any) -> Results:
    """`sample_content` as its types."""
    return parsed(sample_content(*args, **given))


def change(record: Record, **values: Any) -> None:
    """Give attributes of a record other values."""
    for name, value in values.items():
        setattr(record, name, value)


def _run(
    name: str, method: str, r: int | None, lr: float, seed: int, parameters: int, value: float, *, chosen: bool
) -> dict[str, Any]:
    return {
        "name": f"{name}-lr{lr:g}-s{seed}",
        "method": method,
        "r": r,
        "alpha": 32.0 if method == "lora" else None,
        "lr": lr,
        "seed": seed,
        "config": {"dropout": 0.0},
        "trainable_parameters": parameters,
        "validation_metric": value - 0.001 * (1 + seed % 2) - (0 if chosen else 0.02),
        "validation_loss": 0.1,
        "metric": value + 0.001 * (seed - 2) if chosen else None,
        "best_step": 1200,
        "steps": 1500,
        "epochs": 25.0,
        "seconds": 12.5,
        "peak_memory_bytes": 123_456_789,
        "pack": 0,
        "status": "finished",
        "reason": None,
        "adapter": f"adapters/{name}-lr{lr:g}-s{seed}" if chosen and method == "lora" else None,
        "other_metrics": {"accuracy_on_0_4": 0.5} if chosen else {},
        "configuration": name,
    }


def _published() -> dict[str, Any]:
    rows = [("baseline, whole model", "full", None, 54_700, 0.984)]
    rows += [(f"r = {r}", "lora", r, round(1045 * r, -2), value) for r, value in PUBLISHED.items()]
    return {
        "source": "the notebook",
        "note": "The notebook's baseline was trained and tested on digits 0-4, so its 0.984 is not that of 5-9.",
        "rows": [
            {
                "label": label,
                "method": method,
                "r": r,
                "trainable_parameters": parameters,
                "metric": value,
                "relative_parameters": parameters / 54_700,
                "relative_metric": value / 0.984,
                "configuration": "full-0" if method == "full" else None,
            }
            for label, method, r, parameters, value in rows
        ],
    }
