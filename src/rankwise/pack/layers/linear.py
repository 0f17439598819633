r"""One Linear layer of a pack: the shared frozen product, and every adapter's update in batched products.

$$y_k = W x_k + b + s_k B_k A_k x_k \qquad k = 1 \dots K$$

Of adapters whose start is taken off the base, $- s_k B_{0k} A_{0k} x_k$ is added: as a further product of width r where
W + s B A is not formed, else to it. It has no gradient of its own.

Three ways, chosen by their cost:

- *factored*: W x is one product over all rows, each adapter's update is added through its r-wide z = A x. Where the
  adapters still read the same batch (the layer is the branch point), W x runs once for each batch.
- *merged*: V = W + s B A is formed for each adapter, used, and formed again in the backward pass; gradients of A and B
  go through r-wide products. Cheaper than factored where there are more rows than the layer is wide.
- *dense*: V is formed for each adapter, and so is its gradient. Cheaper where a layer is thin and there are many rows:
  half the calls.

The backward pass is written out, for factored, merged and dense:

$$dz = s\,B^T dy^T, \qquad dA = dz\,x, \qquad d(sB) = dy^T z^T, \qquad dx = dy\,W + dz^T A$$
$$z = A x^T, \qquad dz, dA, d(sB) \text{ as factored}, \qquad dx = dy\,(W + s B A)$$
$$dW = dy^T x, \qquad dA = s\,B^T dW, \qquad d(sB) = dW A^T, \qquad dx = dy\,(W + s B A)$$

Gradients of A and B are not handed to autograd but written where the optimiser reads them. Why its own function:
plain autograd keeps more tensors, records a dozen nodes a bucket, can't add in place onto the frozen product, and
copies every gradient. `rankwise.lora.maths.lora_update` is the same in one line; every pack is compared with it before
its first step (`rankwise.pack.model.packed_model`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable as _once_differentiable

from rankwise.pack.groups import Groups, SharedBatches
from rankwise.pack.stacks.store import Gradient

Backward = Callable[..., tuple[Tensor | None, ...]]


def once_differentiable(backward: Backward) -> Backward:
    """torch's decorator of this name, which costs 10 us a call, only where a second derivative could be asked for."""
    refusing: Backward = _once_differentiable(backward)  # pyright: ignore[reportUnknownVariableType]

    def call(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        return refusing(ctx, *dy) if torch.is_grad_enabled() else backward(ctx, *dy)

    return call


@dataclass(frozen=True)
class Segment:
    """Adapters start..stop, which lie in one bucket, and their stacks for one layer.

    Args:
        start, stop: Their places.
        A: (K, r, d_in).
        B: (K, d_out, r), times the scale.
        A_grad, B_grad: Where their gradients go.
        runs: None where every adapter has its own rows; else those that read the same batches.
        taken: A0 and -s B0, shaped as A and B, where the adapters' start is taken off the base.
    """

    start: int
    stop: int
    A: Tensor
    B: Tensor
    A_grad: Gradient
    B_grad: Gradient
    runs: Sequence[SharedBatches] | None = None
    taken: tuple[Tensor, Tensor] | None = None

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A and B, and A0 and B0 where there are some: what is added to the base."""
        return [(self.A, self.B)] if self.taken is None else [(self.A, self.B), self.taken]


@dataclass(frozen=True)
class Layer:
    """A frozen layer and who adapts it.

    Args:
        weight: (d_out, d_in).
        bias: (d_out,) or None.
        size: How many adapters run through the layer, with updates or without.
        segments: Those with updates.
        groups: None, or the map from batches to adapters where they still share them.
    """

    weight: Tensor
    bias: Tensor | None
    size: int
    segments: Sequence[Segment]
    groups: Groups | None = None

    def cheapest(self, rows: int) -> "Callable[[Tensor, Tensor, Layer], Tensor] | None":
        """The way without a detour through the adapters' own inputs that is cheapest when each has so many rows.

        Returns:
            `merged` or `dense`; None for `factored`.
        """
        # Where W is of half precision, W + s B A would lose what A and B have learned.
        if self.groups is not None or self.weight.dtype not in (torch.float32, torch.float64):
            return None
        d_out, d_in = self.weight.shape
        R = sum(A.shape[0] * A.shape[1] for segment in self.segments for A, _ in segment.pairs)
        # Multiplications beyond the frozen layer's own.
        through = R * rows * (d_in + d_out)
        factored = 3 * through
        merged_ = 2 * through + 2 * R * d_in * d_out
        dense_ = self.size * rows * d_in * d_out + 3 * R * d_in * d_out
        # 1.25: what half the calls are worth on small layers, where the choice matters; on large ones the two sides
        # differ by far more.
        if dense_ <= 1.25 * min(factored, merged_):
            return dense
        return merged if merged_ < factored else None

    def stacked(self, x: Float[Tensor, "n ... d_in"]) -> Float[Tensor, "G rows d_in"]:
        """The rows of each adapter, or of each batch where adapters share them."""
        n = self.size if self.groups is None else self.groups.n_batches
        return x.reshape(n, -1, x.shape[-1])

    def outputs(self, y: Float[Tensor, "K rows d_out"], x: Tensor) -> Float[Tensor, "m ... d_out"]:
        """y in the shape in which the model expects the output of x, for every adapter."""
        rows = x.shape[0] if self.groups is None else x.shape[0] // self.groups.n_batches * self.size
        return own_memory(y, (rows, *x.shape[1:-1], y.shape[-1]))

    def sums(self) -> Float[Tensor, "K d_out d_in"]:
        """W + s B A of every adapter."""
        if len(self.segments) == 1 and self.segments[0].stop - self.segments[0].start == self.size:
            weights = torch.baddbmm(self.weight, self.segments[0].B, self.segments[0].A)
            return weights if self.segments[0].taken is None else _without(weights, *self.segments[0].taken)
        weights = self.weight.new_empty(self.size, *self.weight.shape)
        end = 0
        for segment in self.segments:
            weights[end : segment.start] = self.weight
            own = weights[segment.start : segment.stop]
            torch.baddbmm(self.weight, segment.B, segment.A, out=own)
            if segment.taken is not None:
                _without(own, *segment.taken)
            end = segment.stop
        weights[end:] = self.weight
        return weights

    def apply_to(self, x: Float[Tensor, "K rows d_in"], weights: Float[Tensor, "K d_out d_in"]) -> Tensor:
        """x V^T + b for every adapter."""
        return torch.bmm(x, weights.mT) if self.bias is None else torch.baddbmm(self.bias, x, weights.mT)


class PackedLinear(torch.autograd.Function):
    """y = x W^T + b plus each adapter's update, factored; see the module's docstring.

    Args of `apply`:
        anchor: Any tensor that needs a gradient: it gets none, but makes autograd run the backward pass.
        x: (K * rows, ..., d_in), or (G * rows, ..., d_in) where adapters share batches.
        x_update: What the updates read in place of x (x after the adapters' own dropout), or None for x.
        layer: The layer and its adapters.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        anchor: Tensor,
        x: Float[Tensor, "n ... d_in"],
        x_update: Float[Tensor, "n ... d_in"] | None,
        layer: Layer,
    ) -> Float[Tensor, "m ... d_out"]:
        stacked = layer.stacked(x)
        y = torch.nn.functional.linear(stacked, layer.weight, layer.bias)
        if layer.groups is not None:
            # What follows adds onto y, so it needs memory of its own: an expanded batch lies under all adapters.
            y = layer.groups.fan_out(y).contiguous()
        ctx.dropped = x_update is not None
        x_update = stacked if x_update is None else layer.stacked(x_update)
        x_T = x_update.mT
        zs: list[Tensor] = []
        for segment in layer.segments:
            z = on_inputs(segment.A, x_T, segment)
            own = y[segment.start : segment.stop]
            own.baddbmm_(z.mT, segment.B.mT)
            if segment.taken is not None:
                A0, B0 = segment.taken
                own.baddbmm_(on_inputs(A0, x_T, segment).mT, B0.mT)
            zs.append(z)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(x_update, *zs)
        return layer.outputs(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: Layer = ctx.layer
        x_update, *zs = ctx.saved_tensors
        dy = dy.reshape(layer.size, -1, dy.shape[-1]).contiguous()
        dx = dy @ layer.weight if ctx.needs_input_grad[1] else None
        dx_update = dx
        if ctx.dropped and ctx.needs_input_grad[2]:
            dx_update = torch.zeros_like(x_update)
        dy_T = dy.mT
        for segment, z in zip(layer.segments, zs, strict=True):
            own = slice(segment.start, segment.stop)
            dy_own = dy_T[own]
            dz = torch.bmm(segment.B.mT, dy_own)
            if segment.runs is None:
                segment.A_grad.add(dz, x_update[own])
            else:
                segment.A_grad.add_by_batch(dz, x_update, segment.runs)
            segment.B_grad.add_transposed(z, dy[own])
            if dx_update is not None:
                dx_update[own].baddbmm_(dz.mT, segment.A)
            if dx_update is not None and segment.taken is not None:
                A0, B0 = segment.taken
                dx_update[own].baddbmm_(torch.bmm(B0.mT, dy_own).mT, A0)
        dx = None if dx is None else dx.view(ctx.shape)
        return None, dx, dx_update.view(ctx.shape) if ctx.dropped and dx_update is not None else None, None


class PackedMerged(torch.autograd.Function):
    """The same with W + s B A formed for every adapter, and gradients through z; see the module's docstring.

    Args of `apply`: as `PackedLinear`, without `x_update`; every adapter has its own rows.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, anchor: Tensor, x: Float[Tensor, "n ... d_in"], layer: Layer
    ) -> Float[Tensor, "m ... d_out"]:
        ctx.layer, ctx.shape = layer, x.shape
        stacked = layer.stacked(x)
        ctx.save_for_backward(stacked)
        return layer.outputs(layer.apply_to(stacked, layer.sums()), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: Layer = ctx.layer
        (x,) = ctx.saved_tensors
        dy = dy.reshape(layer.size, -1, dy.shape[-1]).contiguous()
        for segment in layer.segments:
            own = slice(segment.start, segment.stop)
            dz = torch.bmm(segment.B.mT, dy[own].mT)
            z = torch.bmm(segment.A, x[own].mT)
            segment.A_grad.add(dz, x[own])
            segment.B_grad.add_transposed(z, dy[own])
        # Formed again, not kept: kept, K layers' weights would lie next to every activation.
        dx = torch.bmm(dy, layer.sums()).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return None, dx, None


class PackedDense(torch.autograd.Function):
    """The same with W + s B A and its gradient formed for every adapter; see the module's docstring.

    Args of `apply`: as `PackedLinear`, without `x_update`; every adapter has its own rows.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, anchor: Tensor, x: Float[Tensor, "n ... d_in"], layer: Layer
    ) -> Float[Tensor, "m ... d_out"]:
        weights = layer.sums()
        ctx.layer, ctx.shape = layer, x.shape
        stacked = layer.stacked(x)
        ctx.save_for_backward(stacked, weights)
        return layer.outputs(layer.apply_to(stacked, weights), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: Layer = ctx.layer
        x, weights = ctx.saved_tensors
        dy = dy.reshape(layer.size, -1, dy.shape[-1]).contiguous()
        dx = torch.bmm(dy, weights).view(ctx.shape) if ctx.needs_input_grad[1] else None
        dW = torch.bmm(dy.mT, x)
        for segment in layer.segments:
            own = dW[segment.start : segment.stop]
            segment.A_grad.add(segment.B.mT, own)
            segment.B_grad.add_transposed(segment.A, own.mT)
        return None, dx, None


def _without(weights: Tensor, A0: Tensor, B0: Tensor) -> Tensor:
    """Take the adapters' start off their weights, in place."""
    return weights.baddbmm_(B0, A0)


def on_inputs(left: Tensor, x_T: Tensor, segment: Segment) -> Tensor:
    """left_k @ x_k^T for every adapter k of a segment, without copying a batch that several of them read."""
    if segment.runs is None:
        return torch.bmm(left, x_T[segment.start : segment.stop])
    product = x_T.new_empty(*left.shape[:2], x_T.shape[2])
    for run in segment.runs:
        torch.bmm(run.stacked(left), x_T[run.batches], out=run.stacked(product))
    return product


def own_memory(y: Tensor, shape: Sequence[int]) -> Tensor:
    """A new contiguous tensor in another shape, which is no view to autograd: what follows may write to it in place
    (`ReLU(inplace=True)`), as it may to a layer's output. `torch.matmul` does the same."""
    return torch.ops.aten._unsafe_view.default(y, shape)


# torch leaves `Function.apply` untyped.
factored: Callable[..., Tensor] = PackedLinear.apply  # pyright: ignore[reportAssignmentType]
merged: Callable[..., Tensor] = PackedMerged.apply  # pyright: ignore[reportAssignmentType]
dense: Callable[..., Tensor] = PackedDense.apply  # pyright: ignore[reportAssignmentType]
