"""`rankwise digits` from options to a run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.experiment import Experiment, Place, begin, carry_out, config_hash, find_device, take_up
from rankwise.sweeps.record import Results
from rankwise.tasks.digits import (
    PUBLISHED_BASELINE,
    base_from,
    candidates_of,
    make_problem,
    pretrain,
    published_table,
)
from rankwise.tasks.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.live import Progress


def run_digits(options: DigitsOptions, place: Place, progress: Progress) -> tuple[Results, list[Path]]:
    """Run the experiment and write its run directory.

    Args:
        options: The settings.
        place: Where the results go.
        progress: Where training is shown.

    Returns:
        The content of `results.json`, and the files of the report.

    Raises:
        RankwiseError: Something in the options, the data or the place for results can't be used.
        KeyboardInterrupt: Interrupted before any run had finished; there are no results yet.
    """
    place.check()
    device = find_device(options.device)
    raw = load_digits_data(options.data)
    problem = make_problem(raw, device)
    candidates = candidates_of(options)
    if place.resume:
        beginning = take_up(place)
        model = base_from(beginning.base or {}, device)
    else:
        progress.message(f"Pretraining the base on the digits 0-4 ({len(problem.splits['old'].train[0]):,} images)")
        model = pretrain(problem, options)
        beginning = begin(place, model.state_dict())
    published = options.protocol == "published"
    experiment = Experiment(
        task="digits",
        model=model,
        candidates=candidates,
        seeds=options.seeds,
        problem=problem,
        base_name="base",
        keep_base=True,
        rungs=options.rungs or (),
        about={
            "config_hash": config_hash(options.settings()),
            "data": {"name": options.data, **raw.fingerprints()},
            "published": published_table() if published else None,
        },
        grid={"ranks": list(options.ranks), "seeds": list(options.seeds), "protocol": options.protocol},
        comparable=[c.name for c in candidates if c.data == "new"],
        relative_to=_published_baseline(sum(p.numel() for p in model.parameters())) if published else None,
        tolerance=options.tolerance,
    )
    results, _, files = carry_out(experiment, beginning, place, progress)
    return results, files


def _published_baseline(parameters: int) -> Mapping[str, Any]:
    return {
        "label": "the published baseline",
        "metric": PUBLISHED_BASELINE[1],
        "trainable_parameters": parameters,
    }
