r"""One Linear layer of a pack: the shared frozen product, and every adapter's update in batched products.

$$y_k = W x_k + b + s_k B_k A_k x_k \qquad k = 1 \dots K$$

W x is one product over all rows of all adapters. Where the adapters still read the same batch (the layer
is the branch point) it runs once for each batch, not for each adapter. The updates run bucket by bucket.

Why an autograd function of its own: plain autograd keeps more tensors, records a dozen nodes a bucket, and can't
add in place onto the frozen product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

from rankwise.lora.maths import lora_gradients


@dataclass(frozen=True)
class Segment:
    """Adapters start..stop of the pack, which lie in one bucket.

    `runs` is None where every adapter has rows of its own; else (batch, first, last + 1) for adapters
    that read the same batch.
    """

    start: int
    stop: int
    runs: list[tuple[int, int, int]] | None


class PackedLinear(torch.autograd.Function):
    """y = x W^T + b, plus each adapter's update; see the module's docstring.

    Args of `apply`:
        x: (K, rows, d_in), or (G, rows, d_in) where adapters share batches.
        weight, bias: The frozen layer's.
        fan_out: None, or the function from (G, ...) to (K, ...).
        segments: One for each bucket that adapts this layer.
        stacks: A, B, scale of each segment, one after another.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Float[Tensor, "G rows d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None,
        fan_out: Any,
        segments: Sequence[Segment],
        *stacks: Tensor,
    ) -> Float[Tensor, "K rows d_out"]:
        y = torch.nn.functional.linear(x, weight, bias)
        if fan_out is not None:
            # The sum below goes onto memory of its own: an expanded tensor has one batch under all adapters.
            fanned = fan_out(y)
            y = fanned.contiguous() if fanned is not y else y
        zs: list[Tensor] = []
        for i, segment in enumerate(segments):
            A, B, scale = stacks[3 * i : 3 * i + 3]
            # (A x^T)^T = x A^T: written so that inputs stand on the right here as in the backward pass.
            z = _with_inputs(A, x.mT, segment).mT.mul_(scale)
            y[segment.start : segment.stop].baddbmm_(z, B.mT)
            zs.append(z)
        ctx.segments = segments
        ctx.save_for_backward(x, weight, *stacks, *zs)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        segments: Sequence[Segment] = ctx.segments
        x, weight, *rest = ctx.saved_tensors
        stacks, zs = rest[: 3 * len(segments)], rest[3 * len(segments) :]
        dy = dy.contiguous()
        needs_dx = ctx.needs_input_grad[0]
        dx = dy @ weight if needs_dx else None
        gradients: list[Tensor | None] = []
        for i, segment in enumerate(segments):
            A, B, scale = stacks[3 * i : 3 * i + 3]
            own = slice(segment.start, segment.stop)
            dz, dB = lora_gradients(dy[own], zs[i], B, scale)
            if dx is not None:
                dx[own].baddbmm_(dz, A)
            gradients += [_with_inputs(dz.mT, x, segment), dB, None]
        return dx, None, None, None, None, *gradients


def _with_inputs(left: Tensor, x: Tensor, segment: Segment) -> Tensor:
    """left_k @ x_k for every adapter k of a segment, without copying a batch that several of them read."""
    if segment.runs is None:
        return left @ x[segment.start : segment.stop]
    product = x.new_empty(*left.shape[:2], x.shape[2])
    for batch, first, last in segment.runs:
        own = slice(first - segment.start, last - segment.start)
        torch.bmm(left[own], x[batch].expand(last - first, -1, -1), out=product[own])
    return product
