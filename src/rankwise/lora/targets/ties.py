"""Weights shared by several modules: one A and B for the weight, used under every name."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import TargetError
from rankwise.lora.layer_types import LayerType, layer_type_of, obstacle
from rankwise.lora.offloaded import data_of
from rankwise.lora.targets.modules import Named
from rankwise.lora.targets.readers import Reader, Weight, reader_of


@dataclass(frozen=True)
class Tie:
    """Another module that has a target's weight.

    Args:
        names: Its paths.
        module: The module.
        layer_type: Its entry in `LAYER_TYPES`.
        flipped: Whether it reads the weight the other way round, as an Embedding and a Linear do: B^T is then
            its A, and A^T its B.
        reader: As of a `Target`.
    """

    names: tuple[str, ...]
    module: nn.Module
    layer_type: LayerType
    flipped: bool
    reader: Reader | None

    @property
    def name(self) -> str:
        """Its first path."""
        return self.names[0]


def sharers(modules: Iterable[Named]) -> dict[nn.Parameter, list[Named]]:
    """Return the weights that more than one module has, with these modules in the model's order."""
    owners: dict[nn.Parameter, list[Named]] = {}
    offloaded: dict[tuple[torch.Size, bytes], nn.Parameter] = {}
    same: dict[nn.Parameter, nn.Parameter] = {}
    for module, names in modules:
        for leaf, parameter in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if parameter is None or parameter.ndim < 2:
                continue
            if parameter.is_meta and hasattr(module, "_hf_hook"):
                # accelerate gives every module its own parameter; those of one weight still have its numbers.
                first = offloaded.setdefault(_numbers(data_of(module, leaf)), parameter)
                parameter, same[parameter] = first, first
            if (module, names) not in owners.setdefault(parameter, []):
                owners[parameter].append((module, names))
    found = {parameter: users for parameter, users in owners.items() if len(users) > 1}
    return found | {parameter: found[first] for parameter, first in same.items() if first in found}


def _numbers(weight: Tensor) -> tuple[torch.Size, bytes]:
    """Return a weight's shape and 256 of its numbers, spread evenly."""
    flat = weight.detach().flatten()
    return weight.shape, flat[:: max(1, flat.numel() // 256)].double().cpu().numpy().tobytes()


def flip(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B of the transposed weight: (B A)^T = A^T B^T.

    Examples:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in flip(torch.ones(2, 5), torch.ones(3, 2))]
        [(2, 3), (5, 2)]
    """
    return B.mT, A.mT


def find_ties(
    model: nn.Module,
    modules: Sequence[Named],
    chosen: Sequence[Weight],
    excluded: Collection[nn.Module] = (),
) -> tuple[list[Weight], dict[str, tuple[Tie, ...]]]:
    """Let the first of the layers with one weight represent all; the others use its adapter.

    Args:
        model: The model.
        modules: All its modules.
        chosen: The weights to adapt.
        excluded: Modules that must get no adapter.

    Returns:
        The weights to adapt, each once and in the model's order, and the other layers that have them, by the
        first path of the one that stands for all.

    Raises:
        TargetError: A layer that has one of the weights can't use the adapter.
    """
    shared = sharers(modules)
    firsts: dict[str, Weight] = {}
    ties: dict[str, tuple[Tie, ...]] = {}
    for weight in chosen:
        users = shared.get(weight.tensor, []) if weight.tensor is not None else []
        for user, names in users:
            _require_usable(weight, user, names, excluded)
        first = Weight(*users[0], "weight", layer_type_of(users[0][0])) if users else weight
        firsts[first.names[0]] = first
        ties[first.names[0]] = tuple(_tie(model, first, *user) for user in users[1:])
    place = {module: i for i, (module, _) in enumerate(modules)}
    return sorted(firsts.values(), key=lambda weight: place[weight.module]), ties


def _tie(model: nn.Module, first: Weight, module: nn.Module, names: list[str]) -> Tie:
    kind = layer_type_of(module)
    if kind is None or first.layer_type is None:
        raise TargetError(f'"{names[0]}" is no layer.')
    reader = reader_of(model, Weight(module, names, "weight", kind))
    return Tie(tuple(names), module, kind, first.layer_type.transposed != kind.transposed, reader)


def _require_usable(weight: Weight, user: nn.Module, names: list[str], excluded: Collection[nn.Module]) -> None:
    """Raise unless a module that has this weight can use its adapter."""
    if user is weight.module:
        return
    kind, other = weight.layer_type, layer_type_of(user)
    blocked = "exclude_modules names it" if user in excluded else obstacle(user)
    if kind is None or other is None or blocked or not _read_alike(kind, weight.module, other, user):
        raise TargetError(
            f'"{weight.names[0]}" shares its weight with "{names[0]}" ({type(user).__name__}), which can\'t use its '
            f"adapter: {blocked or 'it reads the weight in another shape'}. Leave both out, or give the target a "
            "weight of its own: untie=True."
        )


def _read_alike(kind: LayerType, module: nn.Module, other_kind: LayerType, other: nn.Module) -> bool:
    """Tell whether two layers read one weight as one matrix, or as its transpose."""
    d_in, d_out = kind.dims(module)
    if kind.transposed != other_kind.transposed:
        d_in, d_out = d_out, d_in
    return other_kind.dims(other) == (d_in, d_out) and (kind == other_kind or (kind.matrix and other_kind.matrix))
