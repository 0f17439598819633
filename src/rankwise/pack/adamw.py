r"""AdamW over a pack: elementwise over the stacked rows, with each adapter's own learning rate and weight decay.

$$\theta \leftarrow (1 - \eta_k \lambda_k)\,\theta - \eta_k\,\hat m / (\sqrt{\hat v} + \epsilon)$$

Torch's fused kernel takes one learning rate for all. So it runs on a buffer U in place of the parameters, with
learning rate 1 and weight decay 1: decay empties the buffer, what is left in it is exactly -m/(sqrt(v) + eps), and the
rows take it with their own rates.

References:
    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.pack.bucket import Bucket


class PackedAdamW:
    """The optimiser of a pack.

    Args:
        buckets: The pack's buckets; their `grads` hold the gradients when `step` is called.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = list(buckets)
        self._buffers = [torch.zeros_like(bucket.rows, requires_grad=True) for bucket in buckets]
        groups = [
            {"params": [buffer], "betas": bucket.members[0].member.betas, "eps": bucket.members[0].member.eps}
            for bucket, buffer in zip(buckets, self._buffers, strict=True)
        ]
        self._torch = torch.optim.AdamW(groups, lr=1.0, weight_decay=1.0, fused=True)
        for bucket, buffer in zip(buckets, self._buffers, strict=True):
            buffer.grad = bucket.grads

    @torch.no_grad()
    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move every adapter one step.

        Args:
            lr: Learning rate of each adapter, in the order of the pack.
            weight_decay: Each adapter's, or None when all are zero.
        """
        self._torch.step()
        start = 0
        for bucket, buffer in zip(self._buckets, self._buffers, strict=True):
            own = slice(start, start + len(bucket))
            start += len(bucket)
            rate = lr[own].unsqueeze(1)
            if weight_decay is not None:
                bucket.rows.mul_(1 - rate * weight_decay[own].unsqueeze(1))
            bucket.rows.addcmul_(buffer, rate)

    def keep(self, buckets: Sequence[Bucket], masks: Sequence[Tensor]) -> "PackedAdamW":
        """The optimiser of the adapters that stay, moments and step count kept.

        Args:
            buckets: All buckets, already cut; empty ones are left out.
            masks: For each old bucket, which of its rows stay.
        """
        kept = PackedAdamW([bucket for bucket in buckets if len(bucket)])
        new = iter(kept._buffers)
        for bucket, buffer, mask in zip(buckets, self._buffers, masks, strict=True):
            state = self._torch.state.get(buffer)
            if len(bucket) and state:
                kept._torch.state[next(new)] = {k: v[mask] if v.dim() else v for k, v in state.items()}
            elif len(bucket):
                next(new)
        return kept


def gradient_norms(buckets: Sequence[Bucket]) -> Tensor:
    """The norm of each adapter's gradient over all its tensors, in the order of the pack."""
    return torch.cat([torch.linalg.vector_norm(bucket.grads, dim=1) for bucket in buckets])


def clip_gradients(buckets: Sequence[Bucket], max_norm: Tensor) -> Tensor:
    """Scale down each adapter's gradient that is longer than its own limit, as `clip_grad_norm_` does alone.

    Args:
        buckets: The pack's buckets.
        max_norm: Each adapter's limit; infinity for none.

    Returns:
        The norms before clipping.
    """
    norms = gradient_norms(buckets)
    factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    start = 0
    for bucket in buckets:
        bucket.grads.mul_(factor[start : start + len(bucket)].unsqueeze(1))
        start += len(bucket)
    return norms
