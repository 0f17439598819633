r"""A fused projection (q, k and v as one layer) adapted on chosen slices of its outputs, each with A and B of its own.

$$\Delta W_{[i]} = s\,B_i A_i \text{ on the rows of slice } i, \quad 0 \text{ elsewhere}$$

All slices together are one ordinary LoRA: the A on top of each other, the B as blocks. So any layer type can be sliced,
and a file holds an ordinary adapter of the summed rank.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import TargetError
from rankwise.lora.layer_types.layer_type import LayerType

Slice = str | tuple[int, int]
"""Outputs of a layer: "0/3" is the first of three equal parts, (0, 64) the outputs 0 to 63."""


def ranges_of(name: str, slices: Sequence[Slice], d_out: int) -> tuple[tuple[int, int], ...]:
    """Return slices as first and last outputs (the last not included), sorted.

    Args:
        name: Path of the layer, for messages.
        slices: As `LoRAConfig.slices` gives them.
        d_out: Outputs of the layer.

    Raises:
        TargetError: They don't fit the layer, overlap, or differ in length.

    Examples:
        >>> ranges_of("c_attn", ["0/3", "2/3"], 12), ranges_of("c_attn", [(4, 8)], 12)
        (((0, 4), (8, 12)), ((4, 8),))
    """
    found: list[tuple[int, int]] = []
    for given in slices:
        if isinstance(given, str):
            i, n = map(int, given.split("/"))
            if not 0 <= i < n or d_out % n:
                raise TargetError(f'"{given}" is no slice of "{name}": its {d_out} outputs must have that many parts.')
            found.append((i * d_out // n, (i + 1) * d_out // n))
        else:
            found.append((given[0], given[1]))
    found.sort()
    ends = [0, *(stop for _, stop in found)]
    inside = all(end <= start < stop <= d_out for end, (start, stop) in zip(ends, found, strict=False))
    if not inside or len({stop - start for start, stop in found}) != 1:
        raise TargetError(
            f'The slices {found} don\'t fit "{name}", which has {d_out} outputs: they must lie in it without '
            "overlap, and have one length. Slices of several lengths can be several adapters."
        )
    return tuple(found)


def sliced_type(kind: LayerType, ranges: tuple[tuple[int, int], ...]) -> LayerType:
    """Return the type of a layer adapted on slices: A (slices * r, d_in), B (length, slices * r), slice after slice."""
    given = {"kind": kind, "ranges": ranges}
    return replace(
        kind,
        dims=functools.partial(_dims, **given),
        update=functools.partial(_update, **given),
        delta=functools.partial(_delta, **given),
        stack=functools.partial(_stack, ranges=ranges),
        slices=ranges,
        matrix=False,
    )


def block_form(B: Tensor, ranges: Sequence[tuple[int, int]], d_out: int) -> Tensor:
    """Return B (length, slices * r) as blocks of a matrix (d_out, slices * r): with A it is an ordinary LoRA.

    Examples:
        >>> block_form(torch.tensor([[1., 2.]]), [(0, 1), (2, 3)], 3)
        tensor([[1., 0.],
                [0., 0.],
                [0., 2.]])
    """
    parts = B.chunk(len(ranges), dim=-1)
    return torch.cat(
        [
            nn.functional.pad(part, (0, 0, start, d_out - stop))
            for part, (start, stop) in zip(parts, ranges, strict=True)
        ],
        dim=-1,
    )


def _dims(layer: Any, *, kind: LayerType, ranges: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    return kind.dims(layer)[0], ranges[0][1] - ranges[0][0]


def _stack(layer: Any, *, ranges: tuple[tuple[int, int], ...]) -> int:
    return len(ranges)


def _update(
    layer: Any,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    *rest: Any,
    kind: LayerType,
    ranges: tuple[tuple[int, int], ...],
    **named: Any,
) -> Tensor:
    return kind.update(layer, x, A, block_form(B, ranges, kind.dims(layer)[1]), *rest, **named)


def _delta(layer: Any, A: Tensor, B: Tensor, *, kind: LayerType, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    return kind.delta(layer, A, block_form(B, ranges, kind.dims(layer)[1]))
