"""Weights that several modules have: one A and B on the weight, used through every name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rankwise.errors import TargetError
from rankwise.lora.layer_types import LayerType, layer_type_of, obstacle

Named = tuple[nn.Module, list[str]]
"""A module and all its paths."""


@dataclass(frozen=True)
class Tie:
    """Another module that has a target's weight.

    Args:
        name: Its first path.
        module: The module.
        layer_type: Its row in `LAYER_TYPES`.
        flipped: Whether it reads the weight the other way round, as an Embedding and a Linear do: B^T is then
            its A, and A^T its B.
    """

    name: str
    module: nn.Module
    layer_type: LayerType
    flipped: bool


def sharers(modules: Iterable[Named]) -> dict[nn.Parameter, list[Named]]:
    """Return the weights that more than one module has, with these modules in the model's order."""
    owners: dict[nn.Parameter, list[Named]] = {}
    for module, names in modules:
        for parameter in set(module._parameters.values()):  # pyright: ignore[reportPrivateUsage]
            if parameter is not None and parameter.ndim > 1:
                owners.setdefault(parameter, []).append((module, names))
    return {parameter: found for parameter, found in owners.items() if len(found) > 1}


def flip(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B of the transposed weight: (B A)^T = A^T B^T.

    Examples:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in flip(torch.ones(2, 5), torch.ones(3, 2))]
        [(2, 3), (5, 2)]
    """
    return B.mT, A.mT


def tied_to(module: nn.Module, others: Sequence[Named], excluded: Iterable[nn.Module] = ()) -> tuple[Tie, ...]:
    """Return the other modules with this one's weight, as users of its adapter.

    Args:
        module: The target.
        others: All modules that have its weight.
        excluded: Modules that must get no adapter.

    Raises:
        TargetError: One of them can't use the adapter.
    """
    row, ties = layer_type_of(module), list[Tie]()
    own_name = next((names[0] for other, names in others if other is module), "")
    for other, names in others:
        if other is module:
            continue
        other_row = layer_type_of(other)
        blocked = "exclude_modules names it" if other in set(excluded) else obstacle(other)
        if row is None or other_row is None or blocked or not _alike(row, module, other_row, other):
            raise TargetError(
                f'"{own_name}" shares its weight with "{names[0]}" ({type(other).__name__}), which can\'t use its '
                f"adapter: {blocked or 'it reads the weight in another shape'}. Leave both out, or give the target a "
                "weight of its own: untie=True."
            )
        ties.append(Tie(names[0], other, other_row, row.transposed != other_row.transposed))
    return tuple(ties)


def _alike(row: LayerType, module: nn.Module, other_row: LayerType, other: nn.Module) -> bool:
    """Tell whether two layers read one weight as one matrix, or as its transpose."""
    d_in, d_out = row.dims(module)
    if row.transposed != other_row.transposed:
        d_in, d_out = d_out, d_in
    return other_row.dims(other) == (d_in, d_out) and (row == other_row or (row.matrix and other_row.matrix))
