r"""bfloat16 mixed precision of a float32 model: the products of linear layers in bfloat16, all else in float32.

$$y_k = \mathrm{float}(\hat W \hat x_k) + b + s_k \hat B_k\, \mathrm{float}(\hat A_k \hat x_k)$$

with hats for numbers rounded to bfloat16. Products add up in float32 inside; W x and A x are rounded once, and are
added up in float32, so that adding W x does not lose small updates. W is rounded once for a pack, x once for all
layers that read it (query, key and value; gate and up), dy once for all products of a layer's backward pass.

Attention, norms, activations, losses and the optimiser stay in float32: on a CPU the backward pass of attention in
bfloat16 takes ten times as long as in float32.
"""

import weakref
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.lora.layer_types import layer_type_of, weight_of
from rankwise.pack.layers.linear import Layer, on_inputs
from rankwise.pack.noise.forwards import Forward, replaced_forwards
from rankwise.pack.precision import HALF, rounds


class Halves:
    """Numbers in bfloat16 that several products read: weights, and the last input."""

    def __init__(self) -> None:
        self._weights: dict[int, Tensor] = {}
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def weight(self, module: nn.Module) -> Tensor:
        """A frozen layer's weight (d_out, d_in)."""
        weight = weight_of(module)
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight.detach().to(HALF)
        half, kind = self._weights[id(weight)], layer_type_of(module)
        return half.mT if kind is not None and kind.transposed else half

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        """An input, rounded once for all layers that read it one after another."""
        if self._last is not None:
            last, version, half = self._last
            if last() is x and version == x._version:
                return half
        half = x.detach().to(HALF)
        self._last = weakref.ref(x), x._version, half
        return half


class HalfProduct(torch.autograd.Function):
    """x W^T + b of a frozen layer, with both products in bfloat16.

    Args of `apply`:
        x: (..., d_in) in float32; only its gradient is of interest.
        half: x in bfloat16.
        weight: (d_out, d_in) in bfloat16.
        bias: (d_out,) in float32, or None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.weight = weight
        return _sum(F.linear(half, weight), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx = (dy.to(HALF) @ ctx.weight).float() if ctx.needs_input_grad[0] else None
        return dx, None, None, None


class PackedHalf(torch.autograd.Function):
    """The same plus each adapter's update, as `PackedLinear` computes it in one precision.

    Args of `apply`:
        anchor: As in `PackedLinear`.
        x: (K, rows, d_in), or (G, rows, d_in) where adapters share batches; in float32.
        x_update: What the updates read in place of x, or None for x; in float32.
        half, half_update: Both in bfloat16.
        layer: The layer and its adapters, its weight and its stacks in bfloat16.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        anchor: Tensor,
        x: Float[Tensor, "G rows d_in"],
        x_update: Float[Tensor, "G rows d_in"] | None,
        half: Float[Tensor, "G rows d_in"],
        half_update: Float[Tensor, "G rows d_in"] | None,
        layer: Layer,
    ) -> Float[Tensor, "K rows d_out"]:
        # Where every adapter has an update, the bias comes with it.
        bias = layer.bias if layer.groups is None and layer.is_tiled else None
        y = _sum(F.linear(half, layer.weight), layer.bias if bias is None else None)
        if layer.groups is not None:
            y = layer.groups.fan_out(y).contiguous()
        ctx.dropped = half_update is not None
        half_update = half if half_update is None else half_update
        zs: list[Tensor] = []
        for segment in layer.segments:
            z = on_inputs(segment.A, half_update.mT, segment)
            # Into y in float32: one pass over it, where a product in bfloat16 would take three.
            y[segment.start : segment.stop].baddbmm_(*_float_factors(z, segment.B, bias))
            zs.append(z)
        ctx.layer = layer
        ctx.save_for_backward(half_update, *zs)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: Layer = ctx.layer
        half_update, *zs = ctx.saved_tensors
        dy = dy.contiguous().to(HALF)
        dx = (dy @ layer.weight).float() if ctx.needs_input_grad[1] else None
        dx_update = dx
        if ctx.dropped and ctx.needs_input_grad[2]:
            dx_update = torch.zeros_like(half_update, dtype=torch.float32)
        for segment, z in zip(layer.segments, zs, strict=True):
            own = slice(segment.start, segment.stop)
            dz = torch.bmm(segment.B.mT, dy[own].mT)
            if segment.runs is None:
                segment.A_grad.add(dz, half_update[own])
            else:
                segment.A_grad.add_by_batch(dz, half_update, segment.runs)
            segment.B_grad.add_transposed(z, dy[own])
            if dx_update is not None:
                dx_update[own].baddbmm_(dz.float().mT, segment.A.float())
        return None, dx, dx_update if ctx.dropped else None, None, None, None


@contextmanager
def halved(model: nn.Module, others: Collection[str], halves: Halves) -> Generator[None]:
    """Run the linear layers that nothing adapts in bfloat16.

    Args:
        model: The model.
        others: Names of the layers that are adapted: left as they are.
        halves: Where their weights are.
    """
    frozen = {name: module for name, module in model.named_modules() if rounds(module) and name not in others}

    def wrap(name: str, forward: Forward) -> Forward:
        module = frozen[name]

        def call(x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                return forward(x)
            return half_product(x, halves.of(x), halves.weight(module), getattr(module, "bias", None))

        return call

    with replaced_forwards(frozen, wrap):
        yield


def _float_factors(
    z: Float[Tensor, "K r rows"], B: Float[Tensor, "K d_out r"], bias: Tensor | None
) -> tuple[Float[Tensor, "K rows R"], Float[Tensor, "K R d_out"]]:
    """z^T and B^T in float32; with a bias, as a further column of B whose z is 1."""
    if bias is None:
        return z.float().mT, B.float().mT
    left, right = z.new_ones(z.shape[0], z.shape[1] + 1, z.shape[2], dtype=bias.dtype), bias.expand(*B.shape[:2])
    left[:, :-1] = z
    return left.mT, torch.cat([B.float(), right.unsqueeze(2)], 2).mT


def _sum(product: Tensor, bias: Tensor | None) -> Tensor:
    """A product in float32, with the bias: one pass."""
    return product.float() if bias is None else torch.add(bias.detach(), product)


# torch leaves `Function.apply` untyped.
half_product: Callable[..., Tensor] = HalfProduct.apply  # pyright: ignore[reportAssignmentType]
packed_half: Callable[..., Tensor] = PackedHalf.apply  # pyright: ignore[reportAssignmentType]
