"""Loss scaling for a base in float16: small gradients would become zero in it, so each loss is made larger first.

The factor is found while training, for each adapter by itself: halved when a gradient overflows, whose step is then
left out, doubled after 2,000 steps without one. So an adapter has the same factors alone and in any pack.

References:
    Micikevicius et al., Mixed Precision Training, 2018, section 3.2. https://arxiv.org/abs/1710.03740
    The numbers are those of `torch.amp.GradScaler`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rankwise.pack.store import Store

START, STEPS_UNTIL_DOUBLED = 2.0**16, 2000


class LossScale:
    """The factors of a pack.

    Args:
        k: How many adapters it has.
        device: Where the factors are kept.
    """

    def __init__(self, k: int, device: torch.device) -> None:
        self.factor = torch.full((k,), START, device=device)
        self.good_steps = torch.zeros(k, device=device)

    def enlarge(self, losses: Tensor) -> Tensor:
        """The losses (K,) to run the backward pass of."""
        return losses.float() * self.factor

    def settle(self, store: Store) -> Tensor:
        """Take the factors out of the gradients again, and find the next ones.

        Returns:
            (K,): whose gradient has overflowed. It is zero now.
        """
        store.multiply(store.grads, 1 / self.factor)
        overflowed = ~store.norms(store.grads).isfinite()
        if overflowed.any():
            store.copy_where(torch.zeros_like(store.grads), store.grads, overflowed)
        self.good_steps = torch.where(overflowed, 0.0, self.good_steps + 1)
        doubled = self.good_steps >= STEPS_UNTIL_DOUBLED
        self.good_steps[doubled] = 0.0
        self.factor = torch.where(overflowed, self.factor / 2, torch.where(doubled, self.factor * 2, self.factor))
        return overflowed

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        self.factor, self.good_steps = self.factor[mask], self.good_steps[mask]

    def state(self) -> dict[str, Tensor]:
        """Vectors with an entry for each adapter."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, entries in the present order of the adapters."""
        self.factor, self.good_steps = (state[key].to(self.factor) for key in ("factor", "good_steps"))
