"""Uniform numbers that depend on what they are for: a seed, a module, a call in a forward pass, an optimiser step.

Creating a generator takes longer than drawing a thousand numbers from it. So on a CPU the numbers of small tensors are
drawn for several steps at once and kept until those steps are over.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.streams import stream

MANY = 1 << 14
"""A draw of at least this many numbers uses a new generator in every step; smaller ones share it over several."""

SEVERAL_STEPS = 1 << 15
"""How many numbers are drawn from a generator that several steps share."""


def uniform(
    seed: int,
    module: str,
    call: int,
    step: int,
    rows: slice,
    total: int,
    shape: Sequence[int],
    device: torch.device,
    *,
    coarse: bool = False,
) -> Tensor:
    """The numbers u in [0, 1) of some rows in one dropout call for one seed: (rows, ...), in float32 or as 16 bits.

    Args:
        seed, module, call, step: What they are keyed on, in addition to the device.
        rows: Which of the batch's rows.
        total: How many rows the batch has.
        shape: Of one row.
        device: Where they are drawn.
        coarse: Whether 16 bits are enough, as for a comparison with a probability. On a CPU each draw then gives four
            numbers, which takes a third of the time; they are 2^16 u - 2^15, in int16.
    """
    # The numbers of a part are those of the whole: a CPU's first ones are the same however many follow, a GPU's aren't.
    drawn = rows.stop if device.type == "cpu" else total
    generator = stream("noise", seed, module, call, step, device=device)
    if coarse and device.type == "cpu":
        u = _sixteen_bits(drawn * math.prod(shape), generator).view(drawn, *shape)
    else:
        u = torch.rand((drawn, *shape), generator=generator, device=device)
    # Of a part a copy, or all that was drawn would stay.
    return u if rows == slice(0, drawn) else u[rows].clone()


def _sixteen_bits(n: int, generator: torch.Generator) -> Tensor:
    """n uniform numbers of int16, the four quarters of 64 bits each."""
    bits = torch.empty(-(-n // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:n]


class CoarseNumbers:
    """The numbers of 16 bits that a pack draws on a CPU."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, int], tuple[Sequence[int], int, Sequence[Tensor]]] = {}

    def of(
        self, seeds: Sequence[int], module: str, call: int, step: int, rows: slice, total: int, shape: Sequence[int]
    ) -> Tensor:
        """Those of each seed: (G, rows, ...); arguments as for `uniform`.

        Small draws share a generator over several steps. How many steps depends only on the size of the draw.
        """
        n = total * math.prod(shape)
        if n >= MANY:
            cpu = torch.device("cpu")
            own = [uniform(seed, module, call, step, rows, total, shape, cpu, coarse=True) for seed in seeds]
            return own[0].unsqueeze(0) if len(own) == 1 else torch.stack(own)
        # A power of two: batches of texts differ in length, and few sizes should be kept.
        size = 1 << max(10, (n - 1).bit_length())
        first, place = divmod(step, SEVERAL_STEPS // size)
        of, at, kept = self._kept.get((module, call, size), ([], -1, ()))
        if at != first or of != seeds:
            streams = [stream("noise of steps", seed, module, call, first, size) for seed in seeds]
            drawn = torch.stack([_sixteen_bits(SEVERAL_STEPS, one) for one in streams])
            kept = drawn.view(len(seeds), -1, size).unbind(1)
            self._kept[module, call, size] = list(seeds), first, kept
        own = kept[place] if n == size else kept[place][:, :n]
        own = own.view(len(seeds), total, *shape)
        return own if rows == slice(0, total) else own[:, rows]
