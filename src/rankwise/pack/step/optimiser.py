"""The base class of a pack's optimisers: vectors laid out as the parameters, cut and saved by adapter.

A further optimiser is a subclass that names its vectors and takes a step, all elementwise over the pack's vectors, with
each adapter's settings spread over its own numbers. One whose step joins numbers of a tensor (Muon, Shampoo) or of an
adapter (LAMB's norms) has to do so bucket by bucket on `Bucket.matrices` or `Bucket.view`, where the padding is zero;
one that needs the loss again (L-BFGS) does not fit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from rankwise.pack.optimisers import Optimiser
from rankwise.pack.resolved import AdapterState
from rankwise.pack.stacks.bucket import Bucket
from rankwise.pack.stacks.store import Store

Settings = TypeVar("Settings", bound=Optimiser)


class PackedOptimiser(ABC):
    """The optimiser of a pack.

    Args:
        store: The pack's numbers; its `grads` hold the gradients when `step` is called, and are left alone.
    """

    settings: ClassVar[type[Optimiser]]
    """The settings that it takes of each adapter."""

    names: ClassVar[tuple[str, ...]]
    """Names of its vectors in checkpoints."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.vectors = [torch.zeros_like(store.theta) for _ in self.names]
        """The moments, laid out as the parameters."""
        self.steps: Tensor = torch.zeros((), device=store.theta.device)
        self.missed: dict[tuple[str, str], int] = {}
        """Steps that a tensor had no part in, by adapter and key; those with none are left out."""
        self.prepare()

    def step_used(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        """`step`, in which tensors without a gradient stay as they are, as parameters without one do in
        `torch.optim`: neither momentum nor decay moves them. Arguments as there."""
        unused = self.store.unused()
        if not unused:
            self.step(lr, weight_decay)
            return
        vectors = [self.store.theta, *self.vectors]
        before = [
            (v := self.store.buckets[i].flat(vector, key)[k], v.clone()) for vector in vectors for i, key, k in unused
        ]
        self.step(lr, weight_decay)
        for view, value in before:
            view.copy_(value)
        for i, key, k in unused:
            place = self.store.buckets[i].members[k].member.name, key
            self.missed[place] = self.missed.get(place, 0) + 1

    def settings_of(self, bucket: Bucket, kind: type[Settings]) -> list[Settings]:
        """The settings of a bucket's adapters, which all have one kind of them."""
        return [own for one in bucket.members if isinstance(own := one.member.optimiser, kind)]

    def has_moved(self) -> bool:
        """Whether an earlier step had a gradient."""
        return any(bool(vector.any()) for vector in self.vectors)

    @abstractmethod
    def prepare(self) -> None:
        """Rebuild what depends on the pack's adapters."""

    @abstractmethod
    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move every adapter one step. Where memory runs out, nothing has changed.

        Args:
            lr: Learning rate of each adapter, in the order of the pack.
            weight_decay: Each adapter's, or None when all are zero.
        """

    def state(self) -> dict[str, AdapterState]:
        """Each adapter's moments by its name, as "<name of the vector>/<tensor>", cut to its rank.

        The step count is not among them: all adapters share it. How many of the steps a tensor missed is.
        """
        states: dict[str, AdapterState] = {}
        for which, vector in zip(self.names, self.vectors, strict=True):
            for name, state in self.store.read(vector).items():
                states.setdefault(name, {}).update({f"{which}/{key}": value for key, value in state.items()})
        for (name, key), missed in self.missed.items():
            if name in states:
                states[name][f"missed/{key}"] = torch.tensor(missed)
        return states

    def load_state(self, states: Mapping[str, AdapterState], steps: int) -> None:
        """Load the tensors of `state`, after this many steps, wherever the adapters are in this pack."""
        self.steps.fill_(steps)
        self.missed = {
            (name, key.removeprefix("missed/")): int(value)
            for name, state in states.items()
            for key, value in state.items()
            if key.startswith("missed/")
        }
        for which, vector in zip(self.names, self.vectors, strict=True):
            start = f"{which}/"
            own = {
                name: {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
                for name, state in states.items()
            }
            self.store.write(vector, own)

    def replace_vectors(self, vectors: Sequence[Tensor]) -> None:
        """Use these moments after adapters were removed from the store."""
        self.vectors = list(vectors)
        self.prepare()


class ExpandedValues:
    """Values of each adapter (K,) at all its numbers, made again only when the values change.

    Args:
        store: The pack's numbers.
        rates: Whether the values are learning rates, which some tensors take at a multiple.
    """

    def __init__(self, store: Store, *, rates: bool = False) -> None:
        self._store, self._rates = store, rates
        self._made: tuple[Tensor, Tensor] | None = None

    def __call__(self, values: Tensor) -> Tensor:
        if self._made is None or not torch.equal(self._made[0], values):
            vector = self._store.rates(values) if self._rates else self._store.spread(values)
            self._made = values.clone(), vector
        return self._made[1]
