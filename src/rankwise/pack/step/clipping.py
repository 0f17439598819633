"""Each adapter's gradient clipped by its own norm."""

import torch
from torch import Tensor

from rankwise.pack.stacks.store import Store


@torch.no_grad()
def clip_gradients(store: Store, max_norm: Tensor) -> None:
    """Scale down each adapter's gradient that is longer than its own limit, as `clip_grad_norm_` does alone.

    Args:
        store: The pack's numbers.
        max_norm: Each adapter's limit; infinity for none.
    """
    # 1e-6 as in torch.nn.utils.clip_grad_norm_.
    norms = store.norms(store.grads)
    store.multiply(store.grads, (max_norm.to(norms.device, non_blocking=True) / (norms + 1e-6)).clamp(max=1.0))
