"""Adapters of one structure, stacked: where each tensor of theirs lies in the vectors of a pack.

For a module, the A of all adapters of a bucket are one contiguous (K, r, d_in), their B the transpose of a contiguous
(K, r, d_out). So the products of a layer are batched over adapters, and where they read one batch, all A of the bucket
are one matrix. B lies transposed because products that give thin columns, as a gradient (d_out, r) is, take up to ten
times as long on a CPU as those that give thin rows.

Ranks up to the next power of four share a bucket, padded to the largest rank in it; A and B with zeros. The padding
stays as it is: the gradient of a zero column of B is dy^T (x A^T) with zero rows of A, and the other way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants import FORMS, Variant, VariantTensor
from rankwise.pack.resolved import AdapterState, Resolved


class Bucket:
    """The map from adapters' tensors to places in a vector.

    Args:
        members: The resolved members, all with the same `bucket_key`.
    """

    def __init__(self, members: Sequence[Resolved]) -> None:
        self.members = list(members)
        first = self.members[0]
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of one adapter's tensor, padded, by its key in `AdapterState`."""
        self._modules = {t.name: i for i, t in enumerate(first.targets)}
        self._ranks = [max(m.targets[i].r for m in self.members) for i in range(len(first.targets))]
        self._declared: dict[str, tuple[int, VariantTensor]] = {}
        for i, t in enumerate(first.targets):
            sizes = replace(t.sizes, r=self._ranks[i])
            self._declared |= {f"{t.name}.{one.name}": (i, one) for one in FORMS[t.variant].tensors}
            self.shapes |= {f"{t.name}.{name}": s for name, s in FORMS[t.variant].shapes(sizes).items()}
        self.shapes |= {name: first.shapes[name] for name in first.trained_parameters}
        self._whole = frozenset(first.trained_parameters)
        self.ups = {key for key, (_, one) in self._declared.items() if one.up}
        """The keys of the up-projections."""
        self.frozen: dict[str, Tensor] = {}
        """The stacks of what the variant has and doesn't train, by key: not in the vectors."""
        self._starts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.members)

    def place(self, key: str, start: int) -> int:
        """Place a tensor's stack at `start` in the vectors, and return the start of the next one."""
        self._starts[key] = start
        return start + len(self) * torch.Size(self.shapes[key]).numel()

    def place_of(self, key: str) -> tuple[int, int]:
        """Where a tensor's stack starts in the vectors, and how many numbers each adapter has there, one after
        another."""
        return self._starts[key], torch.Size(self.shapes[key]).numel()

    def rate_of(self, key: str, k: int) -> float:
        """The multiple of adapter k's learning rate at which one of its tensors trains."""
        if key in self.ups:
            return self.members[k].member.lr_ratio
        return self.members[k].member.rate_of(key) if key in self._whole else 1.0

    def view(self, vector: Tensor, key: str) -> Tensor:
        """The stack (K, ...) of a tensor in a vector."""
        shape = self.shapes[key]
        if key in self.ups:
            return self.flat(vector, key).view(len(self), *shape[::-1]).mT
        return self.flat(vector, key).view(len(self), *shape)

    def flat(self, vector: Tensor, key: str) -> Tensor:
        """The numbers of the stack, a row for each adapter, as they lie in a vector."""
        start, n = self.place_of(key)
        return vector[start : start + len(self) * n].view(len(self), n)

    def matrices(self, vector: Tensor, key: str) -> Tensor | None:
        """The stack of a tensor as matrices (K, n, rows, columns), each one of a stack of experts by itself: a view of
        the vector. None of what is no matrix."""
        stack = self.view(vector, key)
        if stack.ndim != 3:
            return None
        i, declared = self._declared.get(key, (0, None))
        if declared is None or declared.rank_dim is None:
            return stack.unsqueeze(1)
        each = stack.unflatten(1 + declared.rank_dim, (self.members[0].targets[i].stack, -1))
        return each.movedim(1 + declared.rank_dim, 1)

    def own_sizes(self, key: str) -> list[tuple[int, int]]:
        """Rows and columns of each adapter's own matrix under a key, without padding."""
        i, declared = self._declared.get(key, (0, None))
        if declared is None:
            rows, columns = self.shapes[key]
            return [(rows, columns)] * len(self)
        shapes = [declared.shape(replace(m.targets[i].sizes, stack=1)) for m in self.members]
        return [(shape[0], shape[1]) for shape in shapes]

    def adapts(self, module: str) -> bool:
        """Whether this bucket has an adapter for the module."""
        return module in self._modules

    def scale(self, module: str, like: Tensor) -> Tensor:
        """Each adapter's s in h = W x + s B A x, for a module: (K, 1, 1)."""
        i = self._modules[module]
        return like.new_tensor([m.targets[i].scale for m in self.members]).view(-1, 1, 1)

    def variant(self, module: str) -> Variant:
        """What its adapters are in a module that they adapt."""
        return FORMS[self.members[0].targets[self._modules[module]].variant]

    def kind(self, module: str) -> LayerType:
        """The layer type that its adapters see in a module."""
        return self.members[0].targets[self._modules[module]].layer_type

    def dropout(self, module: str, like: Tensor) -> Tensor:
        """Each adapter's dropout (K,) on its inputs in a module; 0 where it has no adapter there."""
        configs = [m.member.lora for m in self.members]
        drops = self.adapts(module) and not self.kind(module).tokens
        p = [config.dropout if config is not None and drops else 0.0 for config in configs]
        return like.new_tensor(p)

    def without(self, mask: Tensor) -> "Bucket | None":
        """This bucket with only the adapters where mask is true, not placed yet; None when none is left."""
        stay = [m for m, stays in zip(self.members, mask.tolist(), strict=True) if stays]
        if not stay:
            return None
        cut = Bucket(stay)
        # The padding stays as it was: rows are cut, nothing is moved inside them.
        cut.shapes, cut._ranks = self.shapes, self._ranks
        cut.frozen = {key: stack[mask.to(stack.device)] for key, stack in self.frozen.items()}
        return cut

    def freeze(self, like: Tensor, given: Mapping[str, AdapterState]) -> None:
        """Stack what the variant has and doesn't train, padded, in the type and on the device of `like`; up-projections
        times the scale.

        Args:
            like: A tensor.
            given: Values that are known, by member name.
        """
        states = [m.frozen(given.get(m.member.name, {})) for m in self.members]
        stacks: dict[tuple[int, ...], Tensor] = {}
        for key in states[0]:
            # What all modules share is one tensor of each adapter, and one stack.
            unpadded = [state[key] for state in states]
            same = tuple(map(id, unpadded))
            if same not in stacks:
                stack = torch.stack([self._padded(key, tensor).to(like) for tensor in unpadded])
                stacks[same] = stack * self.scale(key.rpartition(".")[0], like) if key in self.ups else stack
            self.frozen[key] = stacks[same]

    def _padded(self, key: str, tensor: Tensor) -> Tensor:
        """One adapter's own tensor at the bucket's rank."""
        i, declared = self._declared[key]
        dim, stack = declared.rank_dim, self.members[0].targets[i].stack
        if dim is None:
            return tensor
        each = tensor.unflatten(dim, (stack, -1))
        more = self._ranks[i] - each.shape[dim + 1]
        after = [0, 0] * (each.ndim - 2 - dim)
        return nn.functional.pad(each, (*after, 0, more), value=declared.pad).flatten(dim, dim + 1)

    def fill_padding(self, vector: Tensor) -> None:
        """Fill the padding where it isn't 0; call it before writing into the vector."""
        for key, (_, declared) in self._declared.items():
            if declared.trained and declared.pad:
                self.view(vector, key).fill_(declared.pad)

    def unpadded(self, key: str, k: int, tensor: Tensor) -> Tensor:
        """The part of adapter k's padded tensor that is its own; each matrix of a stack has its dimension."""
        if key not in self._declared or self._declared[key][1].rank_dim is None:
            return tensor
        i, declared = self._declared[key]
        target, dim = self.members[k].targets[i], declared.rank_dim or 0
        return tensor.unflatten(dim, (target.stack, -1)).narrow(dim + 1, 0, target.r)

    def write(self, vector: Tensor, k: int, state: AdapterState) -> None:
        """Write adapter k's tensors into a vector; the padding is not changed."""
        for key, value in state.items():
            place = self.unpadded(key, k, self.view(vector, key)[k])
            place[...] = value.to(vector).reshape(place.shape)

    def read(self, vector: Tensor, k: int) -> AdapterState:
        """Adapter k's own tensors in a vector, cut to its rank, copied to the CPU."""
        shapes = self.members[k].shapes
        state = {key: self.unpadded(key, k, self.view(vector, key)[k]).reshape(shapes[key]) for key in shapes}
        return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
