r"""Losses of one adapter, and what training takes from single rows: f(outputs, batch).

Token losses take outputs (rows, T, V) and a label for each token, `IGNORED` where there is no loss. A causal model's
output at t is for the token at t + 1; an encoder-decoder's for the label at t. They divide by the adapter's own tokens:

$$L = \frac{\sum_{i,t} -\log p(y_{i,t})}{\sum_{i,t} 1}$$

so they return a scalar, and `token_sums` gives both sums of each row where a step is cut into several batches.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.tasks.text.encode.tokens import IGNORED

Batch = Mapping[str, Tensor]


def targets_of(batch: Batch) -> Int[Tensor, "rows T"]:
    """The token each output predicts: its label, for a causal model the next one.

    The labels are moved and not the outputs, which a large vocabulary makes too large to copy.
    """
    labels = batch["labels"]
    return labels if "decoder_input_ids" in batch else F.pad(labels[..., 1:], (0, 1), value=IGNORED)


def token_sums(
    outputs: Float[Tensor, "rows T V"], batch: Batch
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Summed cross-entropy and number of tokens with loss of each row.

    In float32 or wider, whatever the model computes in: a sum over a large vocabulary needs it.

    Args:
        outputs: Logits.
        batch: Has labels, and decoder_input_ids for an encoder-decoder.

    Examples:
        >>> outputs = torch.zeros(1, 3, 8)
        >>> sums, counts = token_sums(outputs, {"labels": torch.tensor([[5, IGNORED, 7]])})
        >>> bool(sums.exp() == 8), counts
        (True, tensor([1.]))
    """
    targets = targets_of(batch)
    wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(targets.shape).sum(-1), (targets != IGNORED).sum(-1).to(wide.dtype)


def class_loss(outputs: Float[Tensor, "rows C"], batch: Batch) -> Float[Tensor, " rows"]:
    """Cross-entropy of each row's one label."""
    return F.cross_entropy(outputs.float(), batch["labels"], reduction="none")


def several_loss(outputs: Float[Tensor, "rows C"], batch: Batch) -> Float[Tensor, " rows"]:
    """Binary cross-entropy of each label, mean over the labels."""
    labels = batch["labels"]
    return F.binary_cross_entropy_with_logits(outputs.to(labels), labels, reduction="none").mean(-1)


def number_loss(outputs: Float[Tensor, "rows 1"], batch: Batch) -> Float[Tensor, " rows"]:
    """Squared error of each row."""
    labels = batch["labels"]
    return (outputs.to(labels) - labels).square().mean(-1)


CLASSIFY_LOSSES = {"one": class_loss, "several": several_loss, "number": number_loss}
"""By the kind of label."""
