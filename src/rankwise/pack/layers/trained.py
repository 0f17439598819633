"""Linear layers and embeddings that adapters train in full.

Their gradients are written where the optimiser reads them, as those of A and B are (`rankwise.pack.layers.linear` says
why), not made by autograd and copied. A table's is zero but for the tokens of a batch: autograd would make it whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.pack.layers.linear import once_differentiable
from rankwise.pack.stacks.store import Gradient


@dataclass(frozen=True)
class TrainedLayer:
    """The layers of some adapters.

    Args:
        weight: Each one's weight in the type that the products run in: (K, d_out, d_in), of a transposed layer
            (K, d_in, d_out).
        bias: (K, d_out), or None.
        weight_grad, bias_grad: Where their gradients go.
        transposed: Whether the weight lies as in transformers' Conv1D.
    """

    weight: Tensor
    bias: Tensor | None
    weight_grad: Gradient
    bias_grad: Gradient | None
    transposed: bool

    def forward(self, x: Float[Tensor, "K rows d_in"]) -> Float[Tensor, "K rows d_out"]:
        """x_k W_k^T + b_k, in the type of the weights."""
        up = self.weight if self.transposed else self.weight.mT
        return torch.bmm(x, up) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), x, up)

    def backward(self, x: Tensor, dy: Tensor, *, wants: bool) -> Tensor | None:
        """Add the gradients of W and b, and return that of x.

        Args:
            x: As in the forward pass.
            dy: The gradient of its outputs.
            wants: Whether the gradient of x is wanted.
        """
        if self.bias_grad is not None:
            self.bias_grad.add_rows(dy)
        dy = dy.to(self.weight.dtype).contiguous()
        if self.transposed:
            self.weight_grad.add(x.mT, dy)
        else:
            self.weight_grad.add(dy.mT, x)
        return torch.bmm(dy, self.weight.mT if self.transposed else self.weight) if wants else None


class TrainedLinear(torch.autograd.Function):
    """y_k = x_k W_k^T + b_k.

    Args of `apply`:
        anchor: As in `PackedLinear`.
        x: (K, rows, d_in).
        rounded: x in the type of the weights, where that is another one; else None. The sum with the bias is then in
            float32.
        layer: The layers.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        anchor: Tensor,
        x: Float[Tensor, "K rows d_in"],
        rounded: Float[Tensor, "K rows d_in"] | None,
        layer: TrainedLayer,
    ) -> Float[Tensor, "K rows d_out"]:
        read = x if rounded is None else rounded
        ctx.layer, ctx.rounded = layer, rounded is not None
        ctx.save_for_backward(read)
        if rounded is None:
            return layer.forward(read)
        product = torch.bmm(read, layer.weight if layer.transposed else layer.weight.mT).float()
        return product if layer.bias is None else product.add_(layer.bias.unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer: TrainedLayer = ctx.layer
        dx = layer.backward(ctx.saved_tensors[0], dy, wants=ctx.needs_input_grad[1])
        return None, dx.float() if dx is not None and ctx.rounded else dx, None, None


@dataclass(frozen=True)
class TrainedTable:
    """The embeddings of some adapters.

    Args:
        weight: Each one's table: (K, V, d).
        weight_grad: Where its gradient goes.
        padding: The index without a gradient, or None.
    """

    weight: Tensor
    weight_grad: Gradient
    padding: int | None


def is_plain_embedding(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether a module only looks up rows, and each use of a row counts once in its gradient."""
    plain = type(module) is nn.Embedding and module.max_norm is None
    return plain and not module.scale_grad_by_freq and not module.sparse


class TrainedEmbedding(torch.autograd.Function):
    """The rows of W_k at indices.

    Args of `apply`:
        anchor: As in `PackedLinear`.
        indices: (K, ...).
        table: The tables.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, anchor: Tensor, indices: Tensor, table: TrainedTable
    ) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(indices)
        return table.weight[_adapters(indices), indices]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table: TrainedTable = ctx.table
        (indices,) = ctx.saved_tensors
        if table.padding is not None:
            dy = dy.masked_fill((indices == table.padding).unsqueeze(-1), 0)
        table.weight_grad.add_at((_adapters(indices), indices), dy)
        return None, None, None


def _adapters(indices: Tensor) -> Tensor:
    k = torch.arange(len(indices), device=indices.device)
    return k.view(-1, *[1] * (indices.ndim - 1))


# torch leaves `Function.apply` untyped.
trained_embedding: Callable[..., Tensor] = TrainedEmbedding.apply  # pyright: ignore[reportAssignmentType]
trained_linear: Callable[..., Tensor] = TrainedLinear.apply  # pyright: ignore[reportAssignmentType]
