r"""One Linear layer of a pack: the shared frozen product, and every adapter's update in batched products.

$$y_k = W x_k + b + s_k B_k A_k x_k \qquad k = 1 \dots K$$

W x is one product over all rows of all adapters. Where the adapters still read the same batch (the layer
is the branch point) it runs once for each batch, not for each adapter. The updates run bucket by bucket.

The backward pass is written out, from the r-wide tensor $z = s A x^T$ kept of the forward pass:

$$dz = s\,B^T dy^T, \qquad dA = dz\,x, \qquad dB = dy^T z^T, \qquad dx = dy\,W + dz^T A$$

Why an autograd function of its own: plain autograd keeps more tensors, records a dozen nodes a bucket, and can't
add in place onto the frozen product. `rankwise.lora.maths.lora_update` is the same in one line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.pack.groups import Groups


@dataclass(frozen=True)
class Segment:
    """Adapters start..stop of the pack, which lie in one bucket, and their stacks for one layer.

    Args:
        start, stop: Their places in the pack.
        A: (K, r, d_in), without autograd; the memory is that of the bucket's leaf.
        B: (K, d_out, r), likewise.
        B_T: B transposed, a view.
        scale: (K, 1, 1).
        runs: None where every adapter has rows of its own; else (batch, first, last + 1) for adapters that
            read the same batch, in their places in the segment.
    """

    start: int
    stop: int
    A: Tensor
    B: Tensor
    B_T: Tensor
    scale: Tensor
    runs: list[tuple[int, int, int]] | None


class PackedLinear(torch.autograd.Function):
    """y = x W^T + b, plus each adapter's update; see the module's docstring.

    Args of `apply`:
        x: (K, rows, d_in), or (G, rows, d_in) where adapters share batches.
        weight, bias: The frozen layer's.
        groups: None, or the map from batches to adapters where they share them.
        segments: One for each bucket that adapts this layer.
        leaves: A and B of each segment, one after another, for autograd to give gradients to.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Float[Tensor, "G rows d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None,
        groups: Groups | None,
        segments: Sequence[Segment],
        *leaves: Tensor,
    ) -> Float[Tensor, "K rows d_out"]:
        y = torch.nn.functional.linear(x, weight, bias)
        if groups is not None:
            # What follows adds onto y, so it needs memory of its own: an expanded batch lies under all adapters.
            y = groups.fan_out(y).contiguous()
        x_T = x.mT
        zs: list[Tensor] = []
        for segment in segments:
            z = _on_inputs(segment.A, x_T, segment).mul_(segment.scale)
            y[segment.start : segment.stop].baddbmm_(z.mT, segment.B_T)
            zs.append(z)
        ctx.segments = segments
        ctx.save_for_backward(x, weight, *zs)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, *zs = ctx.saved_tensors
        dy = dy.contiguous()
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        dy_T = dy.mT
        gradients: list[Tensor | None] = []
        for segment, z in zip(ctx.segments, zs, strict=True):
            own = slice(segment.start, segment.stop)
            dy_own = dy_T[own]
            dz = torch.bmm(segment.B_T, dy_own).mul_(segment.scale)
            gradients += [_on_inputs(dz, x, segment), torch.bmm(dy_own, z.mT)]
            if dx is not None:
                dx[own].baddbmm_(dz.mT, segment.A)
        return dx, None, None, None, None, *gradients


def _on_inputs(left: Tensor, x: Tensor, segment: Segment) -> Tensor:
    """left_k @ x_k for every adapter k of a segment, without copying a batch that several of them read."""
    if segment.runs is None:
        return torch.bmm(left, x[segment.start : segment.stop])
    if len(segment.runs) == 1:
        return torch.bmm(left, x[segment.runs[0][0]].expand(len(left), -1, -1))
    product = x.new_empty(*left.shape[:2], x.shape[2])
    for batch, first, last in segment.runs:
        torch.bmm(left[first:last], x[batch].expand(last - first, -1, -1), out=product[first:last])
    return product
