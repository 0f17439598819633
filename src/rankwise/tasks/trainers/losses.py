"""The loss of a trainer as a function of a model's outputs: the one that gives the trainer's own values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.tasks.text.encode.tokens import IGNORED
from rankwise.tasks.text.score.losses import class_loss, several_loss
from rankwise.tasks.trainers.batches import LABELS

Batch = Mapping[str, Tensor]
Loss = Callable[[Tensor, Batch], Any]
"""f(outputs, batch) of one adapter: one value a row, or (sums, counts)."""

SAME = 1e-5
"""The largest relative difference to the trainer's own loss."""


def token_loss(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of each row's tokens, the label at t being that of the output at t; and how many."""
    return _token_sums(outputs, batch[LABELS])


def next_token_loss(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Likewise, the label at t + 1 being that of the output at t."""
    return _token_sums(outputs, F.pad(batch[LABELS][..., 1:], (0, 1), value=IGNORED))


def _token_sums(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).sum(-1), (labels != IGNORED).sum(-1).to(wide.dtype)


def squared_error(outputs: Tensor, batch: Batch) -> Tensor:
    """Squared error of each row, the mean over its numbers."""
    labels = batch[LABELS].to(outputs)
    return (outputs - labels.view_as(outputs)).square().mean(-1)


@dataclass(frozen=True)
class KnownLoss:
    """A loss that a sweep knows.

    Args:
        fits: Whether outputs and labels can be its own.
        loss: The loss.
    """

    fits: Callable[[Tensor, Tensor], bool]
    loss: Loss


def _of_tokens(outputs: Tensor, labels: Tensor) -> bool:
    return outputs.dim() == 3 and outputs.shape[:2] == labels.shape and not labels.is_floating_point()


LOSSES = {
    "cross-entropy of the next token": KnownLoss(_of_tokens, next_token_loss),
    "cross-entropy of each token": KnownLoss(_of_tokens, token_loss),
    "cross-entropy of the label": KnownLoss(
        lambda outputs, labels: outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point(), class_loss
    ),
    "binary cross-entropy of the labels": KnownLoss(
        lambda outputs, labels: outputs.dim() == 2 and outputs.shape == labels.shape and labels.is_floating_point(),
        several_loss,
    ),
    "squared error": KnownLoss(
        lambda outputs, labels: outputs.dim() == 2 and outputs.numel() == labels.numel() and labels.is_floating_point(),
        squared_error,
    ),
}
"""Losses that a sweep knows, by what they are called."""


def find_loss(trainer: Any, batches: Sequence[Batch], outputs: Sequence[Tensor]) -> tuple[str, Loss]:
    """The loss that gives what the trainer's `compute_loss` gives, and its name.

    Args:
        trainer: The trainer, its model in eval mode.
        batches: On which both are computed.
        outputs: Of the model on each.

    Raises:
        ConfigError: There is none.
    """
    if any(LABELS not in batch for batch in batches):
        raise ConfigError(
            f'{type(trainer).__name__} makes batches without "{LABELS}" ({", ".join(batches[0])}); a sweep takes '
            "the loss from outputs and labels."
        )
    # A copy, since trainers put more into a batch.
    theirs = [float(trainer.compute_loss(trainer.model, dict(batch))) for batch in batches]
    found: list[str] = []
    for name, known in LOSSES.items():
        if all(known.fits(out, batch[LABELS]) for out, batch in zip(outputs, batches, strict=True)):
            ours = [_value(known.loss(out, batch)) for out, batch in zip(outputs, batches, strict=True)]
            if np.allclose(ours, theirs, rtol=SAME, atol=SAME):
                return name, known.loss
            found.append(f"{ours[0]:.6g} ({name})")
    raise ConfigError(
        f"The loss of {type(trainer).__name__} is {theirs[0]:.6g} on a batch, and none that a sweep knows: "
        f"{', '.join(found) or 'its outputs fit none'}. Losses of your own (compute_loss_func, label smoothing, "
        "auxiliary losses) go with rankwise.sweep(loss=...)."
    )


def _value(got: Any) -> float:
    """Of a batch."""
    if isinstance(got, tuple):
        sums, counts = got
        return float(sums.sum() / counts.sum().clamp_min(1))
    return float(got.mean())
