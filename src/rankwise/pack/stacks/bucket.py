"""Adapters of one structure, stacked: where each tensor of theirs lies in the vectors of a pack.

For a module, the A of all adapters of a bucket are one contiguous (K, r, d_in), their B the transpose of a contiguous
(K, r, d_out). So the products of a layer are batched over adapters, and where they read one batch, all A of the bucket
are one matrix. B lies transposed because products that give thin columns, as a gradient (d_out, r) is, take up to ten
times as long on a CPU as those that give thin rows.

Ranks up to the next power of four share a bucket, padded with zeros to the largest rank in it. The padding
stays zero: the gradient of a zero column of B is dy^T (x A^T) with zero rows of A, and the other way round.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants import VARIANTS, Variant, variant_name
from rankwise.pack.resolved import Resolved, State


class Bucket:
    """The map from adapters' tensors to places in a vector.

    Args:
        members: The resolved members, all with the same `bucket_key`.
    """

    def __init__(self, members: Sequence[Resolved]) -> None:
        self.members = list(members)
        first = self.members[0]
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of one adapter's tensor, padded, by its key in `State`."""
        for i, t in enumerate(first.targets):
            r = max(m.targets[i].r for m in self.members)
            self.shapes[f"{t.name}.A"], self.shapes[f"{t.name}.B"] = (t.stack * r, t.d_in), (t.d_out, t.stack * r)
        self.shapes |= first.shapes
        self.ups = {f"{t.name}.B" for t in first.targets}
        """The keys of the up-projections."""
        self._starts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.members)

    def place(self, key: str, start: int) -> int:
        """Give a tensor's stack its place, from `start` in the vectors, and return where the next one begins."""
        self._starts[key] = start
        return start + len(self) * torch.Size(self.shapes[key]).numel()

    def view(self, vector: Tensor, key: str) -> Tensor:
        """The stack (K, ...) of a tensor in a vector."""
        shape = self.shapes[key]
        if key in self.ups:
            return self.flat(vector, key).view(len(self), *shape[::-1]).mT
        return self.flat(vector, key).view(len(self), *shape)

    def flat(self, vector: Tensor, key: str) -> Tensor:
        """The numbers of the stack, a row for each adapter, as they lie in a vector."""
        start, n = self._starts[key], torch.Size(self.shapes[key]).numel()
        return vector[start : start + len(self) * n].view(len(self), n)

    def adapts(self, module: str) -> bool:
        """Whether this bucket has A and B for the module."""
        return f"{module}.A" in self.shapes

    def scale(self, module: str, like: Tensor) -> Tensor:
        """Each adapter's s in h = W x + s B A x, for a module: (K, 1, 1)."""
        i = [t.name for t in self.members[0].targets].index(module)
        return like.new_tensor([m.targets[i].scale for m in self.members]).view(-1, 1, 1)

    def variant(self, module: str) -> Variant:
        """What its adapters make of A and B in a module that they adapt."""
        config = self.members[0].member.lora
        return VARIANTS["lora" if config is None else variant_name(config.variant, self.row(module))]

    def row(self, module: str) -> LayerType:
        """How its adapters see a module that they adapt."""
        return next(t.layer_type for t in self.members[0].targets if t.name == module)

    def dropout(self, module: str, like: Tensor) -> Tensor:
        """Each adapter's dropout (K,) on its inputs in a module; 0 where it has no A and B there."""
        configs = [m.member.lora for m in self.members]
        drops = self.adapts(module) and not self.row(module).tokens
        p = [config.dropout if config is not None and drops else 0.0 for config in configs]
        return like.new_tensor(p)

    def without(self, mask: Tensor) -> "Bucket | None":
        """This bucket with only the adapters where mask is true, not placed yet; None when none is left."""
        stay = [m for m, stays in zip(self.members, mask.tolist(), strict=True) if stays]
        if not stay:
            return None
        cut = Bucket(stay)
        cut.shapes = self.shapes  # the padding stays as it was: rows are cut, nothing is moved inside them
        return cut

    def write(self, vector: Tensor, k: int, state: State) -> None:
        """Put adapter k's own tensors into a vector; the padding is left alone."""
        stacks = {
            f"{t.name}.{letter}": (dim, t.stack) for t in self.members[k].targets for dim, letter in enumerate("AB")
        }
        for key, value in state.items():
            place, own = self.view(vector, key)[k], value.to(vector)
            if key in stacks:  # the padding is inside each matrix of a stack
                place, own = (tensor.unflatten(stacks[key][0], (stacks[key][1], -1)) for tensor in (place, own))
            place[tuple(slice(n) for n in own.shape)] = own

    def read(self, vector: Tensor, k: int) -> State:
        """Adapter k's own tensors in a vector, cut to its rank, copied to the CPU."""
        member, state = self.members[k], {}
        for t in member.targets:
            A, B = (self.view(vector, f"{t.name}.{letter}")[k] for letter in "AB")
            state[f"{t.name}.A"] = A.unflatten(0, (t.stack, -1))[:, : t.r].flatten(0, 1)
            state[f"{t.name}.B"] = B.unflatten(1, (t.stack, -1))[:, :, : t.r].flatten(1, 2)
        state |= {name: self.view(vector, name)[k] for name in member.shapes}
        return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
