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

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
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

    @cached_property
    def up_transposed(self) -> Tensor:
        """(K, r, d_out); made once, since a view takes as long as a small product."""
        return self.B.mT

    @cached_property
    def down_by_batch(self) -> list[Tensor]:
        """For each of the runs the A of all adapters that read a batch, one below the other."""
        return [run.stacked(self.A) for run in self.runs or ()]

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

    def cheapest(self, rows: int) -> "Way":
        """The way with the fewest multiplications for this many rows of each adapter, without dropout on its input."""
        # Where W is of half precision, W + s B A would lose what A and B have learned.
        if self.groups is not None or self.weight.dtype not in (torch.float32, torch.float64):
            return FACTORED
        d_out, d_in = self.weight.shape
        R = sum(A.shape[0] * A.shape[1] for segment in self.segments for A, _ in segment.pairs)
        # Multiplications beyond the frozen layer's own.
        through = R * rows * (d_in + d_out)
        factored = 3 * through
        merged = 2 * through + 2 * R * d_in * d_out
        dense = self.size * rows * d_in * d_out + 3 * R * d_in * d_out
        # 1.25: what half the calls are worth on small layers, where the choice matters; on large ones the two sides
        # differ by far more.
        if dense <= 1.25 * min(factored, merged):
            return DENSE
        return MERGED if merged < factored else FACTORED

    def stacked(self, x: Float[Tensor, "n ... d_in"]) -> Float[Tensor, "G rows d_in"]:
        """The rows of each adapter, or of each batch where adapters share them."""
        n = self.size if self.groups is None else self.groups.n_batches
        return x.reshape(n, -1, x.shape[-1])

    def outputs(self, y: Float[Tensor, "K rows d_out"], x: Tensor) -> Float[Tensor, "m ... d_out"]:
        """y in the shape in which the model expects the output of x, for every adapter."""
        rows = x.shape[0] if self.groups is None else x.shape[0] // self.groups.n_batches * self.size
        return own_memory(y, (rows, *x.shape[1:-1], y.shape[-1]))

    @cached_property
    def _sizes(self) -> list[int] | None:
        """The segments' lengths where they follow each other without a gap, from the first adapter to the last."""
        ends = [0, *(segment.stop for segment in self.segments)]
        tiled = ends[:-1] == [segment.start for segment in self.segments] and ends[-1] == self.size
        return [segment.stop - segment.start for segment in self.segments] if tiled else None

    @property
    def is_tiled(self) -> bool:
        """Whether every adapter has an update here."""
        return self._sizes is not None

    def parts(self, t: Shaped[Tensor, "K ..."]) -> Sequence[Tensor]:
        """The part of a tensor that belongs to each segment: views."""
        if self._sizes is not None:
            return t.split_with_sizes(self._sizes)
        return [t[segment.start : segment.stop] for segment in self.segments]

    def sums(self) -> Float[Tensor, "K d_out d_in"]:
        """W + s B A of every adapter."""
        if len(self.segments) == 1 and self.is_tiled:
            weights = torch.baddbmm(self.weight, self.segments[0].B, self.segments[0].A)
            return weights if self.segments[0].taken is None else _without(weights, *self.segments[0].taken)
        weights = self.weight.new_empty(self.size, *self.weight.shape)
        end = 0
        for segment, own in zip(self.segments, self.parts(weights), strict=True):
            if end < segment.start:
                weights[end : segment.start] = self.weight
            torch.baddbmm(self.weight, segment.B, segment.A, out=own)
            if segment.taken is not None:
                _without(own, *segment.taken)
            end = segment.stop
        if end < self.size:
            weights[end:] = self.weight
        return weights

    def apply_to(self, x: Float[Tensor, "K rows d_in"], weights: Float[Tensor, "K d_out d_in"]) -> Tensor:
        """x V^T + b for every adapter."""
        return torch.bmm(x, weights.mT) if self.bias is None else torch.baddbmm(self.bias, x, weights.mT)


class Way(ABC):
    """One of the three ways in which a layer's products run; see the module's docstring."""

    @abstractmethod
    def forward(
        self, layer: Layer, x: Float[Tensor, "G rows d_in"], x_update: Float[Tensor, "G rows d_in"] | None
    ) -> tuple[Float[Tensor, "K rows d_out"], list[Tensor]]:
        """The layer's outputs, in new memory, and what the backward pass needs.

        Args:
            layer: The layer and its adapters.
            x: The inputs of each adapter, or of each batch where adapters share them.
            x_update: What the updates read in place of x (x after the adapters' own dropout), or None for x.
        """

    @abstractmethod
    def backward(
        self,
        layer: Layer,
        saved: Sequence[Tensor],
        dy: Float[Tensor, "K rows d_out"],
        *,
        wants: bool,
        dropped: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add the gradients of A and B, and return those of x and `x_update`, in new memory.

        Args:
            layer: As in the forward pass.
            saved: What it left.
            dy: The gradient of its outputs, contiguous.
            wants: Whether gradients of inputs are wanted.
            dropped: Whether the updates had inputs of their own.
        """


class FactoredWay(Way):
    """Through z = A x; the only way for adapters that share batches or have dropout."""

    def forward(self, layer: Layer, x: Tensor, x_update: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        return self.add_updates(layer, torch.nn.functional.linear(x, layer.weight, layer.bias), x, x_update)

    def add_updates(
        self, layer: Layer, y: Float[Tensor, "G rows d_out"], x: Tensor, x_update: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The forward pass from y = W x + b on, which may be overwritten."""
        if layer.groups is not None:
            # What follows adds onto y, so it needs memory of its own: an expanded batch lies under all adapters.
            y = layer.groups.fan_out(y).contiguous()
        x_update = x if x_update is None else x_update
        x_T = x_update.mT
        saved = [x_update]
        for segment, own in zip(layer.segments, layer.parts(y), strict=True):
            z = on_inputs(segment.A, x_T, segment, segment.down_by_batch)
            own.baddbmm_(z.mT, segment.up_transposed)
            if segment.taken is not None:
                A0, B0 = segment.taken
                own.baddbmm_(on_inputs(A0, x_T, segment).mT, B0.mT)
            saved.append(z)
        return y, saved

    def backward(
        self, layer: Layer, saved: Sequence[Tensor], dy: Tensor, *, wants: bool, dropped: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        x_update, *zs = saved
        dx = dy @ layer.weight if wants else None
        dx_update = torch.zeros_like(x_update) if dropped and wants else dx
        parts = zip(layer.segments, zs, layer.parts(dy), layer.parts(dy.mT), strict=True)
        for segment, z, dy_own, dy_T in parts:
            dz = torch.bmm(segment.up_transposed, dy_T)
            if segment.runs is None:
                segment.A_grad.add(dz, x_update[segment.start : segment.stop])
            else:
                segment.A_grad.add_by_batch(dz, x_update, segment.runs)
            segment.B_grad.add_transposed(z, dy_own)
            if dx_update is not None:
                own = dx_update[segment.start : segment.stop]
                own.baddbmm_(dz.mT, segment.A)
                if segment.taken is not None:
                    A0, B0 = segment.taken
                    own.baddbmm_(torch.bmm(B0.mT, dy_T).mT, A0)
        return dx, dx_update if dropped else None


class MergedWay(Way):
    """With W + s B A formed for every adapter, and gradients through z."""

    def forward(self, layer: Layer, x: Tensor, x_update: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        return layer.apply_to(x, layer.sums()), [x]

    def backward(
        self, layer: Layer, saved: Sequence[Tensor], dy: Tensor, *, wants: bool, dropped: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        parts = zip(layer.segments, layer.parts(saved[0]), layer.parts(dy), strict=True)
        for segment, x_own, dy_own in parts:
            segment.A_grad.add(torch.bmm(segment.up_transposed, dy_own.mT), x_own)
            segment.B_grad.add_transposed(torch.bmm(segment.A, x_own.mT), dy_own)
        # Formed again, not kept: kept, K layers' weights would lie next to every activation.
        return torch.bmm(dy, layer.sums()) if wants else None, None


class DenseWay(Way):
    """With W + s B A and its gradient formed for every adapter."""

    def forward(self, layer: Layer, x: Tensor, x_update: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        weights = layer.sums()
        return layer.apply_to(x, weights), [x, weights]

    def backward(
        self, layer: Layer, saved: Sequence[Tensor], dy: Tensor, *, wants: bool, dropped: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        x, weights = saved
        dx = torch.bmm(dy, weights) if wants else None
        dW = torch.bmm(dy.mT, x)
        for segment, own, own_T in zip(layer.segments, layer.parts(dW), layer.parts(dW.mT), strict=True):
            segment.A_grad.add(segment.up_transposed, own)
            segment.B_grad.add_transposed(segment.A, own_T)
        return dx, None


FACTORED, MERGED, DENSE = FactoredWay(), MergedWay(), DenseWay()


class PackedLinear(torch.autograd.Function):
    """y = x W^T + b plus each adapter's update, in one of the three ways.

    Args of `apply`:
        anchor: Any tensor that needs a gradient: it gets none, but makes autograd run the backward pass.
        x: (K * rows, ..., d_in), or (G * rows, ..., d_in) where adapters share batches.
        x_update: What the updates read in place of x (x after the adapters' own dropout), or None for x.
        layer: The layer and its adapters.
        way: Which way.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        anchor: Tensor,
        x: Float[Tensor, "n ... d_in"],
        x_update: Float[Tensor, "n ... d_in"] | None,
        layer: Layer,
        way: Way = FACTORED,
    ) -> Float[Tensor, "m ... d_out"]:
        y, saved = way.forward(layer, layer.stacked(x), None if x_update is None else layer.stacked(x_update))
        ctx.layer, ctx.way, ctx.shape, ctx.dropped = layer, way, x.shape, x_update is not None
        ctx.save_for_backward(*saved)
        return layer.outputs(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: Layer = ctx.layer
        dy = dy.reshape(layer.size, -1, dy.shape[-1]).contiguous()
        gradients = ctx.way.backward(layer, ctx.saved_tensors, dy, wants=ctx.needs_input_grad[1], dropped=ctx.dropped)
        dx, dx_update = (None if gradient is None else gradient.view(ctx.shape) for gradient in gradients)
        return None, dx, dx_update, None, None


def _without(weights: Tensor, A0: Tensor, B0: Tensor) -> Tensor:
    """Take the adapters' start off their weights, in place."""
    return weights.baddbmm_(B0, A0)


def on_inputs(left: Tensor, x_T: Tensor, segment: Segment, by_batch: Sequence[Tensor] = ()) -> Tensor:
    """left_k @ x_k^T for every adapter k of a segment, without copying a batch that several of them read.

    Args:
        left: (K, r, d_in).
        x_T: The inputs, transposed.
        segment: Says who reads what.
        by_batch: `left` for each of its runs, where that is known.
    """
    if segment.runs is None:
        return torch.bmm(left, x_T[segment.start : segment.stop])
    by_batch = by_batch or [run.stacked(left) for run in segment.runs]
    if len(by_batch) == 1:
        return torch.bmm(by_batch[0], segment.runs[0].read(x_T)).view(*left.shape[:2], x_T.shape[2])
    product = x_T.new_empty(*left.shape[:2], x_T.shape[2])
    for run, own in zip(segment.runs, by_batch, strict=True):
        torch.bmm(own, run.read(x_T), out=run.stacked(product))
    return product


def own_memory(y: Tensor, shape: Sequence[int]) -> Tensor:
    """A new contiguous tensor in another shape, which is no view to autograd: what follows may write to it in place
    (`ReLU(inplace=True)`), as it may to a layer's output. `torch.matmul` does the same."""
    return torch.ops.aten._unsafe_view.default(y, shape)


# torch leaves `Function.apply` untyped.
packed_linear: Callable[..., Tensor] = PackedLinear.apply  # pyright: ignore[reportAssignmentType]
