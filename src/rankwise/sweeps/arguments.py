"""From the arguments of `rankwise.sweep` to data, candidates and a problem."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rankwise.errors import ConfigError
from rankwise.pack.losses import PerBatch
from rankwise.sweeps.candidates.baselines import baselines
from rankwise.sweeps.candidates.from_user import Config, candidates_of
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.user_values import as_counts, as_rates, modules_of_head
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.sweeps.problem import DEFAULT_DATA, Problem, Splits
from rankwise.train.data.cuts import pooled
from rankwise.train.data.feed import Feed
from rankwise.train.data.loaders import cut_off, in_memory
from rankwise.train.data.tensors import Data
from rankwise.train.precheck import check_model
from rankwise.train.settings import Training

SHARE_CUT = 0.1
"""The share of the training data for validation or test data that are not given."""


def check_cache(problem: Problem, *, cached: bool, apart: bool, kept: bool) -> None:
    """Refuse a cache where one can't be used, and workers without a run directory.

    Args:
        problem: What is measured.
        cached: Whether the outputs below the first adapted layer are to be kept.
        apart: Whether workers in other processes train.
        kept: Whether there is a run directory.

    Raises:
        ConfigError: In these cases.
    """
    if apart and (cached or not kept):
        raise ConfigError("Workers need a run directory, and none of a cache: give out, and leave cache out.")
    if problem.model_metric is not None and cached:
        raise ConfigError(
            "A ModelMetric runs the whole model, and a cache holds what its first layers give; leave it out."
        )


def splits_of(
    model: nn.Module, train: Any, validation: Any, test: Any, training: Training | None
) -> tuple[Splits, list[str]]:
    """The data in memory, on the model's device, and notes about them and of the training."""
    device = next(model.parameters()).device
    rest, notes = in_memory(train, "training", device), list[str]()
    parts: dict[str, Data] = {}
    for what, given in (("test", test), ("validation", validation)):
        if given is not None:
            parts[what] = in_memory(given, what, device)
            continue
        rest, parts[what] = cut_off(rest, SHARE_CUT, what)
        notes.append(f"A tenth of the training data is cut off for {what}.")
    if training is not None and training.has_lr:
        unused = f"The learning rate of `training`, {training.lr:g}, is not used"
        notes.append(f"{unused}; `lrs` has those that are tried.")
    if validation is not None:
        return Splits(rest, parts["validation"], parts["test"]), notes
    own, cut, rotation = pooled(rest, parts["validation"])
    return Splits(own, cut, parts["test"], rotation), notes


def candidates_from(
    model: nn.Module,
    configs: Config | Iterable[Config] | Mapping[str, Config | tuple[Config, Training]],
    head: Sequence[str],
    training: Training,
    lrs: float | Sequence[float],
    baseline: bool | float | Sequence[float],
) -> list[Candidate]:
    """The candidates: adapters, and baselines.

    Raises:
        RankwiseError: The model can't be swept, or an argument can't be used.
    """
    check_model(model)
    head_modules, rates = modules_of_head(model, head), as_rates(lrs, "lrs")
    full = baseline if isinstance(baseline, bool) else as_rates(baseline, "baseline")
    return [
        *candidates_of(model, configs, head_modules, training, rates),
        *baselines(model, head_modules, training, rates, full),
    ]


def problem_of(
    splits: Splits,
    loss: PerBatch,
    metric: PerBatch | ModelMetric | None,
    metric_name: str | None,
    higher_is_better: bool | None,
    feed: Feed,
) -> Problem:
    """Data, loss and metric; without a metric the loss is one."""
    return Problem(
        splits={DEFAULT_DATA: splits},
        loss=loss,
        metric=loss if metric is None or isinstance(metric, ModelMetric) else metric,
        metric_name=metric_name or ("loss" if metric is None else "metric"),
        higher_is_better=metric is not None if higher_is_better is None else higher_is_better,
        feed=feed,
        model_metric=metric if isinstance(metric, ModelMetric) else None,
    )


def seeds_of(deciding: Deciding, seeds: int | Sequence[int] | None, n_candidates: int) -> Sequence[int]:
    """The seeds that are trained; one where an adaptive plan has nothing to decide."""
    counted = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    chosen = deciding.seeds(None if counted is None else as_counts(counted, "seeds"))
    return chosen[:1] if seeds is None and n_candidates == 1 and deciding.plan == "auto" else chosen


def feed_of(call: Callable[[nn.Module, Any], Tensor] | Feed, rows_at_once: int, rows_a_pass: int | None) -> Feed:
    """The feed of the model."""
    feed = call if isinstance(call, Feed) else Feed(call=call)
    return replace(feed, rows_at_once=rows_at_once, rows_a_pass=rows_a_pass)


def unused_seeds(candidates: Sequence[Candidate]) -> list[str]:
    """A note where a configuration has its own seed."""
    if any(c.lora is not None and c.lora.seed for c in candidates):
        return ["The seed of a LoRAConfig is not used; `seeds` has those that are trained."]
    return []
