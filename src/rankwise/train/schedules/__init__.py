"""Learning-rate schedules for many adapters at once, found through one table: a new one is a new file and a row.

A schedule holds vectors, an entry for each adapter: a pack asks it once a step, not once an adapter.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rankwise.train.schedules.constant import Constant
from rankwise.train.schedules.cosine import Cosine
from rankwise.train.schedules.linear import Linear
from rankwise.train.schedules.plateau import Plateau
from rankwise.train.schedules.schedule import Schedule

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "plateau": Plateau,
}


class Schedules:
    """The factors of a pack whose adapters may follow different schedules, with linear warm-up before any of them.

    Args:
        names: Each adapter's schedule.
        warmup: Each adapter's steps of warm-up.
        total_steps: Each adapter's steps at most.
    """

    def __init__(self, names: Sequence[str], warmup: Sequence[int], total_steps: Sequence[int]) -> None:
        self._names = list(names)
        self._warmup = torch.tensor(warmup, dtype=torch.float64)
        self._longest_warmup = max(self._warmup.tolist(), default=0.0)
        totals = torch.tensor(total_steps, dtype=torch.float64)
        self._parts = {name: SCHEDULES[name](totals[self._of(name)]) for name in dict.fromkeys(names)}

    def _of(self, name: str) -> Tensor:
        return torch.tensor([other == name for other in self._names])

    def moves_each_step(self, step: int) -> bool:
        """Whether the factors differ from the last step's."""
        return any(part.moves_each_step for part in self._parts.values()) or step <= self._longest_warmup

    def factor(self, step: int) -> Tensor:
        """Each adapter's factor (K,) for a step, in float64."""
        factors = torch.ones(len(self._names), dtype=torch.float64)
        for name, part in self._parts.items():
            factors[self._of(name)] = part.factor(step)
        # The first step of a warm-up of n takes 1/n of the rate, the n-th all of it.
        return factors * ((step + 1) / self._warmup.clamp(min=1)).clamp(max=1)

    def observe(self, validation_loss: Tensor) -> None:
        """Take in the validation losses (K,) after an epoch."""
        for name, part in self._parts.items():
            part.observe(validation_loss[self._of(name)])

    def state(self) -> dict[str, Tensor]:
        """The state of the schedules: vectors with an entry for each adapter, in float64."""
        state: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            for vector in part.VECTORS:
                values = state[f"{name}.{vector}"] = torch.zeros(len(self._names), dtype=torch.float64)
                values[self._of(name)] = getattr(part, vector)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, entries in the present order of the adapters."""
        for name, part in self._parts.items():
            for vector in part.VECTORS:
                setattr(part, vector, state[f"{name}.{vector}"][self._of(name)])

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        for name, part in self._parts.items():
            part.keep(mask[self._of(name)])
        self._names = [name for name, stays in zip(self._names, mask.tolist(), strict=True) if stays]
        self._warmup = self._warmup[mask]
        self._longest_warmup = max(self._warmup.tolist(), default=0.0)
        self._parts = {name: part for name, part in self._parts.items() if name in self._names}
