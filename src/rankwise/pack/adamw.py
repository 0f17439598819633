r"""AdamW over a pack: elementwise over the stacked rows, with each adapter's own learning rate and weight decay.

$$\theta \leftarrow (1 - \eta_k \lambda_k)\,\theta - \eta_k\,\hat m / (\sqrt{\hat v} + \epsilon)$$

Torch's fused kernel takes one learning rate for all. So it runs on a buffer U in place of the parameters, with
learning rate 1 and weight decay 1: decay empties the buffer, what is left in it is exactly -m/(sqrt(v) + eps), and the
rows take it with their own rates.

References:
    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rankwise.pack.bucket import Bucket


@dataclass
class _Moments:
    """A bucket's state: U, the first and the second moment, all shaped as its rows, and the step count."""

    update: Tensor
    first: Tensor
    second: Tensor
    step: Tensor

    @classmethod
    def zero(cls, rows: Tensor) -> "_Moments":
        update, first, second = (torch.zeros_like(rows) for _ in range(3))
        return cls(update, first, second, torch.zeros((), device=rows.device))

    def keep(self, mask: Tensor) -> "_Moments":
        return _Moments(self.update[mask], self.first[mask], self.second[mask], self.step)


class PackedAdamW:
    """The optimiser of a pack.

    Args:
        buckets: The pack's buckets; their `grads` hold the gradients when `step` is called.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._set([(bucket, _Moments.zero(bucket.rows)) for bucket in buckets])

    def _set(self, states: list[tuple[Bucket, _Moments]]) -> None:
        self._states = states
        # Adapters of a bucket share betas and eps; buckets that do go through the kernel in one call.
        self._calls: dict[tuple[float, float, float], list[tuple[Bucket, _Moments]]] = {}
        for bucket, moments in states:
            member = bucket.members[0].member
            self._calls.setdefault((*member.betas, member.eps), []).append((bucket, moments))

    @torch.no_grad()
    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move every adapter one step.

        Args:
            lr: Learning rate of each adapter, in the order of the pack.
            weight_decay: Each adapter's, or None when all are zero.
        """
        for (beta1, beta2, eps), states in self._calls.items():
            adamw(
                [moments.update for _, moments in states],
                [bucket.grads for bucket, _ in states],
                [moments.first for _, moments in states],
                [moments.second for _, moments in states],
                [],
                [moments.step for _, moments in states],
                fused=True,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                lr=1.0,
                weight_decay=1.0,
                amsgrad=False,
                maximize=False,
            )
        start = 0
        for bucket, moments in self._states:
            own = slice(start, start + len(bucket))
            start += len(bucket)
            rate = lr[own].unsqueeze(1)
            if weight_decay is not None:
                bucket.rows.mul_(1 - rate * weight_decay[own].unsqueeze(1))
            bucket.rows.addcmul_(moments.update, rate)

    def keep(self, masks: Sequence[Tensor]) -> None:
        """Leave only some adapters, their moments and step count kept; the buckets have been cut already.

        Args:
            masks: For each bucket, which of its rows stay.
        """
        cut = [(bucket, moments.keep(mask)) for (bucket, moments), mask in zip(self._states, masks, strict=True)]
        self._set([(bucket, moments) for bucket, moments in cut if len(bucket)])


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
    # 1e-6 as in torch.nn.utils.clip_grad_norm_.
    factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    start = 0
    for bucket in buckets:
        bucket.grads.mul_(factor[start : start + len(bucket)].unsqueeze(1))
        start += len(bucket)
    return norms
