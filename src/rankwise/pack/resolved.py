"""A member of a pack with its patterns resolved on a model: which modules, of what shape, at what scale."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.layer.initial import init_obstacle, initial_tensors, shared_tensors, with_shared
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.layer_types.quantised import in_eight_bits
from rankwise.lora.targets.find import Target, find_targets
from rankwise.lora.targets.modules import base_tensors, submodule
from rankwise.lora.variants import FORMS, LORA
from rankwise.pack.member import Member
from rankwise.pack.modes import statistics_frozen

AdapterState = dict[str, Tensor]
"""The tensors that one adapter trains: its variant's ("<module>.A", "<module>.B", "<module>.magnitude"), and a tensor
trained in full under its own name."""


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
        targets: The modules with an adapter.
        trained_parameters: Names of the parameters that it trains in full.
        shapes: Shapes of what is trained, by its key in `AdapterState`.
    """

    member: Member
    targets: tuple[Target, ...]
    trained_parameters: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def bucket_key(self) -> tuple[object, ...]:
        """Members with equal keys share a bucket."""
        low_rank = tuple((t.name, bucket_rank(t.r), t.layer_type.slices, t.layer_type.tokens) for t in self.targets)
        forms = tuple(dict.fromkeys(t.variant for t in self.targets))
        return forms, low_rank, self.trained_parameters, self.member.optimiser.bucket_key()

    def start(self, model: nn.Module, given: Mapping[str, Tensor] = MappingProxyType({})) -> AdapterState:
        """The initial values: A and B (for LoRA), and copies of parameters trained in full.

        Args:
            model: The base.
            given: Values that are known, by key in `AdapterState`; a layer for which all are is not drawn.
        """
        state: AdapterState = {}
        for t in self.targets:
            config, keys = self.member.lora, {f"{t.name}.{one.name}": one.name for one in FORMS[t.variant].trained}
            if config is not None and not keys.keys() <= given.keys():
                tensors = initial_tensors(t, config)
                state |= {key: tensors[name] for key, name in keys.items()}
        parameters = base_tensors(model, buffers=False)
        for name in self.trained_parameters:
            state[name] = parameters[name].detach().clone()
        frozen = {f"{t.name}.{one.name}" for t in self.targets for one in FORMS[t.variant].tensors if not one.trained}
        return state | {key: value for key, value in given.items() if key not in frozen}

    def parameter_count(self) -> int:
        """The number of trainable parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def frozen(self, given: Mapping[str, Tensor]) -> AdapterState:
        """Tensors of the variant that are not trained, keyed as `AdapterState`; the settings fix their values.

        Args:
            given: Values that are known; those that follow from training data must be.
        """
        keys = {t.name: [one.name for one in FORMS[t.variant].tensors if not one.trained] for t in self.targets}
        config = self.member.lora
        if config is None or not any(keys.values()):
            return {}
        missing = [t for t in self.targets if any(f"{t.name}.{key}" not in given for key in keys[t.name])]
        own = {t.name: initial_tensors(t, config) for t in missing}
        tensors = with_shared(missing, own, shared_tensors(self.targets, config))
        drawn = {f"{name}.{key}": tensor for name, found in tensors.items() for key, tensor in found.items()}
        return {place: (given if place in given else drawn)[place] for n in keys for place in _places(n, keys[n])}


def _places(module: str, keys: Iterable[str]) -> list[str]:
    return [f"{module}.{key}" for key in keys]


def resolve(model: nn.Module, member: Member) -> Resolved:
    """Find what a member trains in this model. A module that it trains in full gets no A and B.

    Raises:
        TargetError: A pattern matches nothing, or a module that can't be adapted.
        PackError: An adapter is of a kind that a pack can't train.
    """
    with statistics_frozen(model):
        return _resolve(model, member)


def _resolve(model: nn.Module, member: Member) -> Resolved:
    if member.lora is not None and (member.lora.modules_to_save or member.lora.bias != "none"):
        raise PackError(
            "modules_to_save and bias of a LoRAConfig aren't trained in a pack; name what an adapter trains in full in "
            "its Member (modules_to_save=...), or in sweep(head=...)."
        )
    found = [] if member.lora is None else find_targets(model, member.lora).adapted
    targets = tuple(t for t in found if t.name not in member.modules_to_save)
    if narrow := next((t.name for t in targets if in_eight_bits(getattr(t.module, t.parameter))), None):
        raise PackError(f'"{narrow}" is stored in 8-bit floats, which packs can\'t compute with; load it in bfloat16.')
    parameters = base_tensors(model, buffers=False)
    trained = tuple(
        f"{module}.{name}" if module else name
        for module in member.modules_to_save
        for name, _ in submodule(model, module).named_parameters(recurse=False)
    )
    for module in member.modules_to_save:
        kind = layer_type_of(submodule(model, module))
        if kind is not None and kind.quantised is not None:
            raise PackError(f'"{module}" is quantised, so "{member.name}" can\'t train it in full. Adapt it instead.')
    shapes = {name: tuple(parameters[name].shape) for name in trained}
    for t in targets:
        variant = FORMS[t.variant]
        if member.lora is not None and (reason := init_obstacle(t, member.lora)):
            raise PackError(f'"{t.name}" can\'t start with init="{member.lora.init}" in "{member.name}": {reason}.')
        if variant is LORA:
            continue
        if reason := variant.obstacle(t.layer_type, t.module) or ("its weight is shared" if t.ties else ""):
            raise PackError(f'"{t.name}" can\'t be adapted by "{member.name}" in a pack: {reason}.')
    return Resolved(member, targets, trained, {**shapes_of(targets), **shapes})


def shapes_of(targets: Iterable[Target]) -> dict[str, tuple[int, ...]]:
    """The shapes of what is trained in these modules, by key in `AdapterState`."""
    return {f"{t.name}.{key}": shape for t in targets for key, shape in FORMS[t.variant].shapes(t.sizes).items()}
