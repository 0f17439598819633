"""Embedding: a matrix whose columns are looked up."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.lora import maths
from rankwise.lora.layer_types.layer_type import LayerType, weight_of
from rankwise.lora.layer_types.linear import delta_transposed


def _dims(layer: nn.Module) -> tuple[int, int]:
    n_embeddings, width = weight_of(layer).shape
    return n_embeddings, width


def _update(
    layer: nn.Embedding,
    x: Int[Tensor, "*batch"],
    A: Float[Tensor, "r n_embeddings"],
    B: Float[Tensor, "width r"],
) -> Float[Tensor, "*batch width"]:
    """B times the column of A that each index names.

    The padding index gets no gradient, as in the base; since A is zero at the start its delta stays zero.
    `scale_grad_by_freq` and `sparse` say how the gradient of the base's weight is made, which is frozen; the
    adapter's gradients are plain.
    """

    def column_of(x: Tensor, A: Tensor) -> Tensor:
        columns = nn.functional.embedding(x, A.mT)
        if layer.padding_idx is not None:
            # Not F.embedding's own argument: under vmap it is ignored in the backward pass.
            columns = torch.where((x == layer.padding_idx).unsqueeze(-1), columns.detach(), columns)
        return columns

    return maths.lora_update(x, A, B, down=column_of)


def _obstacle(layer: nn.Module) -> str:
    max_norm = getattr(layer, "max_norm", None)
    if max_norm is None:
        return ""
    return f"max_norm = {max_norm} makes every forward rewrite rows of the base's weight; set it to None"


EMBEDDING = LayerType(
    "Embedding",
    _dims,
    _update,
    delta_transposed,
    obstacle=_obstacle,
    matrix=True,
    transposed=True,
    reads_indices=True,
    outputs=1,
)
