"""The storage of a pack: adapters of like structure, one row of numbers each.

A bucket is a matrix with a row for each adapter that holds all its parameters, every A, every B, every
tensor trained whole, one after another. Layers see strided views of it: for a module, A is
(K, r, d_in) and B is (K, d_out, r). So the products of a layer are batched over adapters, and everything
that is done for each adapter (its norm, its learning rate, keeping its best weights, taking it out) is one
operation on rows.

Ranks up to the next power of four share a bucket, padded with zeros to the largest rank in it. The padding
stays zero: the gradient of a zero column of B is dy^T (x A^T) with zero rows of A, and the other way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.inits import initial_adapter
from rankwise.lora.targets import Target, find_targets
from rankwise.pack.member import Member

State = dict[str, Tensor]
"""One adapter's tensors: "<module>.A" and "<module>.B", and a tensor trained whole under its own name."""


def bucket_rank(r: int) -> int:
    """The largest rank of r's bucket: 4, 16, 64, 256, ...

    Examples:
        >>> [bucket_rank(r) for r in (1, 4, 5, 16, 64, 65)]
        [4, 4, 16, 16, 64, 256]
    """
    limit = 4
    while limit < r:
        limit *= 4
    return limit


@dataclass(frozen=True)
class Resolved:
    """A member with its patterns resolved on a model: the modules, their shapes and scales."""

    member: Member
    targets: tuple[Target, ...]
    whole: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def bucket_key(self) -> tuple[object, ...]:
        """Members with equal keys share a bucket."""
        low_rank = tuple((t.name, bucket_rank(t.r)) for t in self.targets)
        return low_rank, self.whole, self.member.betas, self.member.eps

    def start(self, model: nn.Module) -> State:
        """The adapter before training: initial A and B, and a copy of what is trained whole."""
        state: State = {}
        for t in self.targets:
            config = self.member.lora
            if config is None:
                continue
            A, B = initial_adapter(
                config.init,
                seed=config.seed,
                module=t.name,
                r=t.r,
                d_in=t.d_in,
                d_out=t.d_out,
                zero_A=t.layer_type.reads_indices,
            )
            state[f"{t.name}.A"], state[f"{t.name}.B"] = A, B
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in self.whole:
            state[name] = parameters[name].detach().clone()
        return state

    def parameter_count(self) -> int:
        """How many numbers this member trains."""
        return sum(t.r * (t.d_in + t.d_out) for t in self.targets) + sum(
            torch.Size(self.shapes[name]).numel() for name in self.whole
        )


def resolve(model: nn.Module, member: Member) -> Resolved:
    """Find what a member trains in this model.

    Raises:
        TargetError: A pattern matches nothing, or a module that can't be adapted.
    """
    targets = () if member.lora is None else tuple(find_targets(model, member.lora).adapted)
    for target in targets:
        if target.ties:
            raise PackError(
                f'"{target.name}" and "{target.ties[0].name}" share one weight, and so one adapter, which packs can\'t '
                f'train yet. Leave them out: exclude_modules=["{target.name}", "{target.ties[0].name}"].'
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole = tuple(
        f"{module}.{name}" if module else name
        for module in member.whole
        for name, _ in model.get_submodule(module).named_parameters(recurse=False)
    )
    return Resolved(member, targets, whole, {name: tuple(parameters[name].shape) for name in whole})


class Bucket:
    """Adapters of one structure, stacked.

    Args:
        members: The resolved members, all with the same `bucket_key`.
        states: Each one's tensors to start from.
        device: Where to keep them.
        dtype: Their type; float32, or float64 in tests.
    """

    def __init__(
        self, members: Sequence[Resolved], states: Sequence[State], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.members = list(members)
        first = members[0]
        self._slots: dict[str, tuple[int, tuple[int, ...]]] = {}
        end = 0
        for i, t in enumerate(first.targets):
            r = max(m.targets[i].r for m in members)
            for key, shape in ((f"{t.name}.A", (r, t.d_in)), (f"{t.name}.B", (t.d_out, r))):
                self._slots[key] = (end, shape)
                end += torch.Size(shape).numel()
        for name in first.whole:
            self._slots[name] = (end, first.shapes[name])
            end += torch.Size(first.shapes[name]).numel()
        rows = torch.zeros(len(members), end, device=device, dtype=dtype)
        for k, state in enumerate(states):
            for key, value in state.items():
                slot = self._view(rows, key)[k]
                slot[tuple(slice(n) for n in value.shape)] = value.to(rows)
        self._scales = {
            t.name: torch.tensor([m.targets[i].scale for m in members], device=device, dtype=dtype).view(-1, 1, 1)
            for i, t in enumerate(first.targets)
        }
        self._set(rows)

    def _view(self, rows: Tensor, key: str) -> Tensor:
        start, shape = self._slots[key]
        return rows[:, start : start + torch.Size(shape).numel()].unflatten(1, shape)

    def _set(self, rows: Tensor) -> None:
        """Take `rows` as the parameters, and make the views of them that autograd differentiates by."""
        self.rows = rows
        self.grads = torch.zeros_like(rows)
        self.leaves = {key: self._view(rows, key).requires_grad_() for key in self._slots}
        self.leaf_grads = [self._view(self.grads, key) for key in self._slots]

    def __len__(self) -> int:
        return len(self.members)

    def adapts(self, module: str) -> bool:
        """Whether this bucket has A and B for the module."""
        return module in self._scales

    def low_rank(self, module: str) -> tuple[Tensor, Tensor, Tensor]:
        """A (K, r, d_in), B (K, d_out, r) and scale (K, 1, 1) of a module."""
        return self.leaves[f"{module}.A"], self.leaves[f"{module}.B"], self._scales[module]

    def dropout(self, module: str) -> Tensor:
        """Each adapter's dropout (K,) on its inputs in a module; 0 where it has no A and B there."""
        configs = [m.member.lora for m in self.members]
        p = [config.dropout if config is not None and self.adapts(module) else 0.0 for config in configs]
        return self.rows.new_tensor(p)

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        self.members = [m for m, stays in zip(self.members, mask.tolist(), strict=True) if stays]
        self._scales = {name: scale[mask] for name, scale in self._scales.items()}
        self._set(self.rows[mask])

    def state(self, k: int, rows: Tensor | None = None) -> State:
        """Adapter k's own tensors, cut to its rank, copied to the CPU.

        Args:
            k: Its place in the bucket.
            rows: Where to read them (the kept best weights, say); by default the current ones.
        """
        rows = self.rows if rows is None else rows
        member, state = self.members[k], {}
        for t in member.targets:
            state[f"{t.name}.A"] = self._view(rows, f"{t.name}.A")[k, : t.r].detach().cpu().clone()
            state[f"{t.name}.B"] = self._view(rows, f"{t.name}.B")[k, :, : t.r].detach().cpu().contiguous().clone()
        for name in member.whole:
            state[name] = self._view(rows, name)[k].detach().cpu().clone()
        return state
