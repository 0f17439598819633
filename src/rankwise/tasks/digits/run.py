"""`rankwise digits` from options to an experiment."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from rankwise.experiment import Experiment
from rankwise.results.origin import RelativeTo
from rankwise.sweeps.provenance import config_hash
from rankwise.tasks.digits.digits import (
    PUBLISHED_BASELINE,
    base_from,
    digits_candidates,
    make_problem,
    pretrain,
    published_table,
)
from rankwise.tasks.digits.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.events import Observers
from rankwise.train.machine.device import device_note, find_device
from rankwise.train.machine.precision import IN_BFLOAT16, choose_precision


def make_digits(options: DigitsOptions, observers: Observers, base: Mapping[str, Tensor] | None) -> Experiment:
    """Read the data and train the base.

    Args:
        options: The settings.
        observers: Hear that the base trains.
        base: The base's weights, where it was trained before.

    Raises:
        RankwiseError: Something in the options or the data can't be used.
    """
    device = find_device(options.device)
    precision = choose_precision(options.precision, "float32", device)
    raw = load_digits_data(options.data)
    problem = make_problem(raw, device)
    candidates = digits_candidates(options)
    for line in device_note(options.device, device):
        observers.message(line)
    if base is not None:
        model = base_from(base, device)
    else:
        observers.message(f"Pretraining the base on the digits 0-4 ({len(problem.splits['old'].train[0]):,} images)")
        model = pretrain(problem, options)
    if precision != "float32":
        problem = replace(problem, feed=replace(problem.feed, precision=precision))
    published = options.protocol == "published"
    return Experiment(
        task="digits",
        model=model,
        candidates=candidates,
        seeds=options.seed_list,
        problem=problem,
        base_name="base",
        keep_base=True,
        rungs=options.rungs or (),
        config_hash=config_hash(options.settings()),
        data_info=raw.info(),
        published=published_table() if published else None,
        grid={"ranks": list(options.ranks), "seeds": list(options.seed_list), "protocol": options.protocol},
        comparable=[c.name for c in candidates if c.data == "new"],
        relative_to=_published_baseline(sum(p.numel() for p in model.parameters())) if published else None,
        deciding=options.deciding,
        notes=() if precision == "float32" else (IN_BFLOAT16,),
    )


def _published_baseline(parameters: int) -> RelativeTo:
    return RelativeTo(label="the published baseline", metric=PUBLISHED_BASELINE[1], trainable_parameters=parameters)
