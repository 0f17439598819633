"""PEFT's forms of A and B for each layer type; here they are always matrices."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.lora.layer_types import LayerType
from rankwise.lora.layer_types.convolution import Convolution, crosses_groups
from rankwise.lora.targets.ties import flip

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""The shapes of A and of B."""


@dataclass(frozen=True)
class FileForm:
    """The form of a layer type's tensors in a file.

    Args:
        keys: Ends of the keys of A and B.
        shapes: (layer type, layer, rank in the file) -> shapes of A and B in the file.
        write: (layer type, layer, A, B) -> A and B as the file has them. Their rank may be larger: see `_write_conv`.
        read: The other way round.
    """

    keys: tuple[str, str]
    shapes: Callable[[LayerType, Any, int], Shapes]
    write: Callable[[LayerType, Any, Tensor, Tensor], tuple[Tensor, Tensor]]
    read: Callable[[LayerType, Any, Tensor, Tensor], tuple[Tensor, Tensor]]


def _as_it_is(kind: LayerType, layer: nn.Module, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return A, B


def _matrix_shapes(kind: LayerType, layer: nn.Module, r: int) -> Shapes:
    d_in, d_out = kind.dims(layer)
    return (r, d_in), (d_out, r)


def _conv_shapes(kind: LayerType, layer: Convolution, r: int) -> Shapes:
    ones = (1,) * len(layer.kernel_size)
    return (r, layer.in_channels, *layer.kernel_size), (layer.out_channels, r // layer.groups, *ones)


def _write_conv(kind: LayerType, layer: Convolution, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """PEFT's A has no groups: ours, which all groups share, is written once for each, with zeros elsewhere.

    So the file's rank is groups times ours; B, whose r columns PEFT reads group by group, stays as it is.
    """
    r, groups, kernel = A.shape[0], layer.groups, layer.kernel_size
    pointwise = B.view(*B.shape, *[1] * len(kernel))
    if crosses_groups(layer, A):
        return A.view(r, -1, *kernel), pointwise
    blocks = A.new_zeros(groups, r, groups, A.shape[1])
    own = torch.arange(groups, device=A.device)
    blocks[own, :, own] = A
    return blocks.reshape(groups * r, layer.in_channels, *kernel), pointwise


def _compact_shapes(kind: LayerType, layer: Convolution, r: int) -> Shapes:
    ones = (1,) * len(layer.kernel_size)
    return (r, layer.in_channels // layer.groups, *layer.kernel_size), (layer.out_channels, r, *ones)


def _write_compact(kind: LayerType, layer: Convolution, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Write the A of a grouped convolution once for all groups, as it is trained."""
    kernel = layer.kernel_size
    return A.view(A.shape[0], -1, *kernel), B.view(*B.shape, *[1] * len(kernel))


def _read_compact(kind: LayerType, layer: Convolution, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return A.flatten(1), B.flatten(1)


def _read_conv(kind: LayerType, layer: Convolution, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Find ours in PEFT's A: one block for all groups, a block for each, or none (then it crosses the groups)."""
    groups, r = layer.groups, A.shape[0]
    up = B.flatten(1)
    if groups == 1:
        return A.flatten(1), up
    width = layer.in_channels // groups * math.prod(layer.kernel_size)
    blocks = A.reshape(groups, r // groups, groups, width)
    own = torch.arange(groups, device=A.device)
    diagonal = blocks[own, :, own]
    if blocks.count_nonzero() != diagonal.count_nonzero():
        return A.flatten(1), up
    if torch.equal(diagonal, diagonal[:1].expand_as(diagonal)):
        return diagonal[0].clone(), up
    # Each group has its own rows: as many rows for all, of which B reads its group's and has zeros for the others.
    spread = up.new_zeros(groups, layer.out_channels // groups, groups, r // groups)
    spread[own, :, own] = up.view(groups, -1, r // groups)
    return diagonal.reshape(r, width), spread.view(layer.out_channels, r)


def _write_stack(kind: LayerType, layer: nn.Module, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A and our B lie expert after expert; PEFT's B has the first column of every expert, then the second."""
    return A, B.unflatten(1, (kind.stack(layer), -1)).transpose(1, 2).flatten(1)


def _read_stack(kind: LayerType, layer: nn.Module, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return A, B.unflatten(1, (-1, kind.stack(layer))).transpose(1, 2).flatten(1)


def _bare_shapes(kind: LayerType, layer: nn.Module, r: int) -> Shapes:
    A, B = _matrix_shapes(kind, layer, r)
    return (B[::-1], A[::-1]) if kind.transposed else (A, B)


def _as_parameter(kind: LayerType, layer: nn.Module, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """B A as the weight is stored: the transposed update, where the layer stores it transposed."""
    return flip(A, B) if kind.transposed else (A, B)


_MATRICES = FileForm(("lora_A.weight", "lora_B.weight"), _matrix_shapes, _as_it_is, _as_it_is)
_CONV = FileForm(("lora_A.weight", "lora_B.weight"), _conv_shapes, _write_conv, _read_conv)

_COMPACT_CONV = FileForm(_CONV.keys, _compact_shapes, _write_compact, _read_compact)

_BARE = FileForm(_MATRICES.keys, _bare_shapes, _as_parameter, _as_parameter)
"""A layer's weight that PEFT has as a bare parameter."""

_FORMS = {
    "Parameter": FileForm(_MATRICES.keys, _matrix_shapes, _write_stack, _read_stack),
    "Embedding": FileForm(("lora_embedding_A", "lora_embedding_B"), _matrix_shapes, _as_it_is, _as_it_is),
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), _CONV),
}
"""Name of a layer type -> its form, where it isn't two matrices under the usual keys."""

KEY_ENDS = {end: letter for form in (_MATRICES, *_FORMS.values()) for end, letter in zip(form.keys, "AB", strict=True)}
"""End of a key -> which of A and B it holds."""


def form_of(kind: LayerType, compact: bool = False, bare: bool = False) -> FileForm:
    """Return how A and B of a layer type lie in a file.

    Args:
        kind: The layer type.
        compact: For a grouped convolution: as Rankwise alone reads it.
        bare: Whether PEFT has the weight as a bare parameter.

    Examples:
        >>> from rankwise.lora.layer_types import layer_type_of
        >>> conv = nn.Conv2d(4, 6, 3, groups=2)
        >>> kind = layer_type_of(conv)
        >>> form_of(kind).shapes(kind, conv, 8)
        ((8, 4, 3, 3), (6, 4, 1, 1))
    """
    if bare and kind.name != "Parameter":
        return _BARE
    form = _FORMS.get(kind.name, _MATRICES)
    return _COMPACT_CONV if compact and form is _CONV else form


def growth_of(layer: nn.Module, A: Tensor) -> int:
    """Return how many times as many numbers PEFT's A has: every group's rows have zeros for the other groups.

    Examples:
        >>> growth_of(nn.Conv2d(4, 6, 3, groups=2), torch.ones(8, 18)), growth_of(nn.Linear(4, 6), torch.ones(8, 4))
        (4, 1)
    """
    return layer.groups**2 if isinstance(layer, Convolution) and not crosses_groups(layer, A) else 1


def is_compact(layer: nn.Module, A: Tensor) -> bool:
    """Tell whether an A of a file is that of a grouped convolution in its compact form."""
    return (
        isinstance(layer, Convolution)
        and layer.groups > 1
        and A.ndim == 2 + len(layer.kernel_size)
        and A.shape[1] == layer.in_channels // layer.groups
    )
