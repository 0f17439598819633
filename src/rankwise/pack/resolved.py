"""A member of a pack with its patterns resolved on a model: which modules, of what shape, at what scale."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.inject import initial_pair
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.layer_types.quantised import in_eight_bits
from rankwise.lora.targets.find import Target, find_targets
from rankwise.lora.targets.modules import base_tensors, submodule
from rankwise.lora.variants import VARIANTS, variant_name
from rankwise.pack.member import Member
from rankwise.pack.modes import statistics_frozen

State = dict[str, Tensor]
"""One adapter's tensors: "<module>.A", "<module>.B" and what its variant trains beside them ("<module>.magnitude"), and
a tensor trained whole under its own name."""


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
        shapes: Their shapes, and those of what the variant trains beside A and B.
    """

    member: Member
    targets: tuple[Target, ...]
    whole: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def bucket_key(self) -> tuple[object, ...]:
        """Members with equal keys share a bucket."""
        low_rank = tuple((t.name, bucket_rank(t.r), t.layer_type.slices, t.layer_type.tokens) for t in self.targets)
        variant = "" if self.member.lora is None else self.member.lora.variant
        return variant, low_rank, self.whole, self.member.betas, self.member.eps

    def start(self, model: nn.Module) -> State:
        """The adapter before training: initial A and B, and a copy of what is trained whole."""
        state: State = {}
        for t in self.targets:
            config = self.member.lora
            if config is None:
                continue
            # Over a base in double precision nothing is trained in less.
            wide = {p.dtype for p in t.module.parameters() if p.dtype == torch.float64}
            A, B = (tensor.to(next(iter(wide), tensor.dtype)) for tensor in initial_pair(t, config))
            state[f"{t.name}.A"], state[f"{t.name}.B"] = A, B
            variant = VARIANTS[variant_name(config.variant, t.layer_type)]
            if variant.tensors:
                like = A.to(next(model.parameters()).device)
                own = variant.init(t.layer_type, t.module, like, B.to(like.device), t.scale)
                state |= {f"{t.name}.{key}": tensor for key, tensor in own.items()}
        parameters = base_tensors(model, buffers=False)
        for name in self.whole:
            state[name] = parameters[name].detach().clone()
        return state

    def parameter_count(self) -> int:
        """How many numbers this member trains."""
        return sum(t.stack * t.r * (t.d_in + t.d_out) for t in self.targets) + sum(
            torch.Size(shape).numel() for shape in self.shapes.values()
        )


def resolve(model: nn.Module, member: Member) -> Resolved:
    """Find what a member trains in this model. A module that it trains whole gets no A and B.

    Raises:
        TargetError: A pattern matches nothing, or a module that can't be adapted.
        PackError: An adapter is of a kind that a pack can't train.
    """
    with statistics_frozen(model):
        return _resolve(model, member)


def _resolve(model: nn.Module, member: Member) -> Resolved:
    if member.lora is not None and (member.lora.modules_to_save or member.lora.bias != "none"):
        raise PackError(
            "modules_to_save and bias of a LoRAConfig aren't trained in a pack; name what an adapter trains whole in "
            "its Member (whole=...), or in sweep(head=...)."
        )
    found = [] if member.lora is None else find_targets(model, member.lora).adapted
    targets = tuple(t for t in found if t.name not in member.whole)
    if narrow := next((t.name for t in targets if in_eight_bits(getattr(t.module, t.parameter))), None):
        raise PackError(f'"{narrow}" is stored in 8-bit floats, which packs can\'t compute with; load it in bfloat16.')
    parameters = base_tensors(model, buffers=False)
    whole = tuple(
        f"{module}.{name}" if module else name
        for module in member.whole
        for name, _ in submodule(model, module).named_parameters(recurse=False)
    )
    for module in member.whole:
        row = layer_type_of(submodule(model, module))
        if row is not None and row.quantised is not None:
            raise PackError(f'"{module}" is quantised, so "{member.name}" can\'t train it whole. Adapt it instead.')
    shapes = {name: tuple(parameters[name].shape) for name in whole}
    return Resolved(member, targets, whole, shapes | _shapes_of_variant(member, targets))


def _shapes_of_variant(member: Member, targets: Iterable[Target]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a variant trains beside A and B.

    Raises:
        PackError: The variant can't adapt a target.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if member.lora is None:
        return shapes
    for t in targets:
        variant = VARIANTS[variant_name(member.lora.variant, t.layer_type)]
        if not variant.tensors:
            continue
        if reason := variant.obstacle(t.layer_type, t.module) or ("its weight is shared" if t.ties else ""):
            raise PackError(f'"{t.name}" can\'t be adapted by "{member.name}" in a pack: {reason}.')
        with torch.no_grad():
            device = getattr(t.module, t.parameter).device
            A, B = torch.zeros(1, t.d_in, device=device), torch.zeros(t.d_out, 1, device=device)
            own = variant.init(t.layer_type, t.module, A, B, 1.0)
        shapes |= {f"{t.name}.{key}": tuple(tensor.shape) for key, tensor in own.items()}
    return shapes
