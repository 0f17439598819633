"""A member of a pack with its patterns resolved on a model: which modules, of what shape, at what scale."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.inits import initial_adapter
from rankwise.lora.layer_types import layer_type_of
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
    """A member, and what it trains in one model.

    Args:
        member: The member.
        targets: The modules with A and B.
        whole: Names of the parameters trained whole.
        shapes: Their shapes.
    """

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
    """Find what a member trains in this model. A module that it trains whole gets no A and B.

    Raises:
        TargetError: A pattern matches nothing, or a module that can't be adapted.
        PackError: An adapter is of a kind that a pack can't train.
    """
    if member.lora is not None and (member.lora.modules_to_save or member.lora.bias != "none"):
        raise PackError(
            "modules_to_save and bias of a LoRAConfig aren't trained in a pack; name what an adapter trains whole in "
            "its Member: Member(whole=...)."
        )
    found = [] if member.lora is None else find_targets(model, member.lora).adapted
    targets = tuple(t for t in found if t.name not in member.whole)
    for target in targets:
        if target.stack > 1:
            raise PackError(
                f'"{target.name}" is a stack of {target.stack} matrices, which packs can\'t train yet. Leave it out: '
                f'exclude_modules="{target.name}".'
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole = tuple(
        f"{module}.{name}" if module else name
        for module in member.whole
        for name, _ in model.get_submodule(module).named_parameters(recurse=False)
    )
    for module in member.whole:
        row = layer_type_of(model.get_submodule(module))
        if row is not None and row.quantised is not None:
            raise PackError(f'"{module}" is quantised, so "{member.name}" can\'t train it whole. Adapt it instead.')
    return Resolved(member, targets, whole, {name: tuple(parameters[name].shape) for name in whole})
