"""A trainer's `compute_metrics` as a metric of single examples."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import ConfigError, suggest
from rankwise.tasks.trainers.batches import LABELS

TRIED = 64
"""Rows on which it is seen whether a metric is a mean of rows."""


class RowMetric:
    """One of the values of `compute_metrics`, of each example alone: metric(outputs, batch).

    Args:
        trainer: Its `compute_metrics` and `preprocess_logits_for_metrics`.
        name: Which value.
    """

    def __init__(self, trainer: Any, name: str) -> None:
        self._compute = trainer.compute_metrics
        self._preprocess = trainer.preprocess_logits_for_metrics
        self.name = name

    @torch.no_grad()
    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """A value for each row."""
        labels = batch[LABELS]
        shown = outputs if self._preprocess is None else self._preprocess(outputs, labels)
        predictions, right = shown.float().cpu().numpy(), labels.cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single row many metrics have no value, and warn
            values = [self.value(predictions[i : i + 1], right[i : i + 1]) for i in range(len(right))]
        return torch.tensor(values, device=outputs.device)

    def value(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        """Of several examples."""
        return float(values_of(self._compute, predictions, labels)[self.name])


def values_of(
    compute: Callable[[Any], Mapping[str, Any]], predictions: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """The results of `compute_metrics`, with names without "eval_"."""
    from transformers import EvalPrediction

    found = compute(EvalPrediction(predictions=predictions, label_ids=labels))
    return {key.removeprefix("eval_"): value for key, value in found.items()}


def find_metric(trainer: Any, outputs: Tensor, labels: Tensor, wanted: str | None) -> tuple[RowMetric, bool] | None:
    """The deciding value of the trainer's `compute_metrics`, and whether higher is better; None for the loss.

    Args:
        trainer: The trainer.
        outputs: Of the model as it is, on some examples.
        labels: Of these.
        wanted: The value's name; None takes `metric_for_best_model`, or the only one.

    Raises:
        ConfigError: There is no such value, or it is no mean over examples.
    """
    args: Any = trainer.args
    name = (wanted or args.metric_for_best_model or "").removeprefix("eval_")
    if name == "loss" or (trainer.compute_metrics is None and not name):
        return None
    if trainer.compute_metrics is None:
        raise ConfigError(f'The metric is "{name}", and the trainer has no compute_metrics; leave it out for the loss.')
    preprocess: Any = trainer.preprocess_logits_for_metrics
    shown = outputs if preprocess is None else preprocess(outputs, labels)
    found = values_of(trainer.compute_metrics, shown.float().cpu().numpy(), labels.cpu().numpy())
    if not name and len(found) == 1:
        (name,) = found
    if name not in found:
        what = f'"{name}" is none of them' if name else "say which decides"
        raise ConfigError(
            f'compute_metrics gives {", ".join(found)}; {what}: metric="{next(iter(found))}", or metric="loss".'
            f"{suggest(name, found) if name else ''}"
        )
    metric = RowMetric(trainer, name)
    _require_mean(metric, outputs, labels)
    better = args.greater_is_better if wanted is None and args.metric_for_best_model else None
    return metric, not name.endswith("loss") if better is None else bool(better)


def _require_mean(metric: RowMetric, outputs: Tensor, labels: Tensor) -> None:
    """Refuse a metric that is no mean over examples, such as F1: its interval can't be known from single examples.

    It is tried on outputs drawn at random, since those of a model may all be one class.

    Raises:
        ConfigError: It isn't one.
    """
    rows = torch.arange(TRIED) % len(labels)
    drawn = torch.randn(TRIED, *outputs.shape[1:], generator=torch.Generator().manual_seed(0)).to(outputs)
    batch = {LABELS: labels[rows.to(labels.device)]}
    single = float(metric(drawn, batch).mean())
    # All of them as one row of examples.
    shown = drawn if metric._preprocess is None else metric._preprocess(drawn, batch[LABELS])  # pyright: ignore[reportPrivateUsage]
    together = metric.value(shown.float().cpu().numpy(), batch[LABELS].cpu().numpy())
    if not np.isclose(single, together, rtol=1e-4, atol=1e-6):
        raise ConfigError(
            f'"{metric.name}" of compute_metrics is {together:.4g} for {TRIED} examples together, and {single:.4g} as '
            'a mean over them: it is no mean over examples (F1, a correlation). Give metric= another, or "loss".'
        )
