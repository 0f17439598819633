"""Loss scaling for a base in float16: small gradients would become zero in it, so each loss is made larger first.

The factor is found while training, for each adapter by itself: halved when a gradient overflows, whose step is then
left out, doubled after 2,000 steps without one. So an adapter has the same factors alone and in any pack. A step that
is left out counts like any other in schedules and in AdamW's correction of its moments, which all adapters share.

References:
    Micikevicius et al., Mixed Precision Training, 2018, section 3.2. https://arxiv.org/abs/1710.03740
    The numbers are those of `torch.amp.GradScaler`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.pack.stacks.store import Store

START, LEAST, STEPS_UNTIL_DOUBLED = 2.0**16, 1.0, 2000

FIRST_STEPS = 25
"""Steps in a row whose gradients may overflow until the factor is found."""


class ScaleUpdate(NamedTuple):
    """The overflows of one step.

    Args:
        overflowed: (K,): whose gradient has overflowed; None where none has.
        next: The state for the next step.
    """

    overflowed: Tensor | None
    next: dict[str, Tensor]


class LossScale:
    """The factors of a pack.

    Args:
        k: How many adapters it has.
        device: Where the factors are kept.
    """

    def __init__(self, k: int, device: torch.device) -> None:
        self._state = {"factor": torch.full((k,), START, device=device)}
        self._state |= {key: torch.zeros(k, device=device) for key in ("good_steps", "left_out")}

    @property
    def left_out(self) -> Tensor:
        """How many steps in a row, up to the last one, were left out for each adapter: (K,)."""
        return self._state["left_out"]

    def enlarge(self, start: Tensor) -> Tensor:
        """The gradients (K, ...) that the backward pass of the losses starts from, times each adapter's factor."""
        return start * self._state["factor"].view(-1, *[1] * (start.dim() - 1))

    def settle(self, store: Store) -> ScaleUpdate:
        """Divide the gradients by the factors; those that overflowed become zero.

        The factors themselves stay: a step that fails later on changes nothing. `load_state` takes the next ones.
        """
        factor, good_steps, left_out = self._state.values()
        store.multiply(store.grads, 1 / factor)
        overflowed = ~store.norms(store.grads).isfinite()
        good_steps = torch.where(overflowed, 0.0, good_steps + 1)
        doubled = good_steps >= STEPS_UNTIL_DOUBLED
        halved = (factor / 2).clamp(min=LEAST)
        after = {
            "factor": torch.where(overflowed, halved, torch.where(doubled, factor * 2, factor)),
            "good_steps": torch.where(doubled, 0.0, good_steps),
            "left_out": torch.where(overflowed, left_out + 1, 0.0),
        }
        if not overflowed.any():
            return ScaleUpdate(None, after)
        store.copy_where(torch.zeros_like(store.grads), store.grads, overflowed)
        return ScaleUpdate(overflowed, after)

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        self._state = {key: vector[mask] for key, vector in self._state.items()}

    def state(self) -> dict[str, Tensor]:
        """Vectors with an entry for each adapter."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` or `settle` gave, entries in the present order of the adapters."""
        self._state = {key: state[key].to(vector) for key, vector in self._state.items()}
