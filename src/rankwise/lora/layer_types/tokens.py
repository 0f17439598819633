r"""Single rows of an embedding's weight, or of an output layer's: the tokens that an adapter trains, each with a row of
its own.

$$\Delta W = B A, \quad A \text{ fixed: row } i \text{ of it picks token } i$$

A is never formed: it has no numbers, (n, 0), and B (width, n) holds what is added to each of the n rows, zero at the
start. So trained rows are an adapter like any other, added to the base's rows, which stay as they are.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import TargetError
from rankwise.lora import maths
from rankwise.lora.layer_types.layer_type import LayerType, weight_of


def checked_tokens(name: str, layer: nn.Module, kind: LayerType | None, tokens: Sequence[int]) -> tuple[int, ...]:
    """Return tokens whose rows of a layer's weight can be trained.

    Args:
        name: Path of the layer, for messages.
        layer: The layer.
        kind: Its entry in `LAYER_TYPES`.
        tokens: Their numbers.

    Raises:
        TargetError: The layer has no row for each token, or not for these.

    Examples:
        >>> from rankwise.lora.layer_types import EMBEDDING
        >>> checked_tokens("embed", nn.Embedding(8, 4), EMBEDDING, [7, 3])
        (7, 3)
    """
    if kind is None or kind.quantised is not None or not (kind.reads_indices or (kind.matrix and kind.outputs == 0)):
        raise TargetError(
            f'"{name}" ({type(layer).__name__}) has no row for each token, or a quantised weight; trainable_tokens are '
            "rows of an Embedding or a Linear."
        )
    n = weight_of(layer).shape[0]
    outside = [token for token in tokens if not 0 <= token < n]
    if outside:
        raise TargetError(
            f'Token {outside[0]} is to be trained, and "{name}" has rows 0 to {n - 1}. Was the vocabulary enlarged '
            f"where this was set up? Then call model.resize_token_embeddings({max(tokens) + 1}) first, or with "
            "len(tokenizer)."
        )
    return tuple(tokens)


def token_type(kind: LayerType, layer: nn.Module, tokens: tuple[int, ...]) -> LayerType:
    """Return the type of a layer of which these rows are trained."""
    size, width = weight_of(layer).shape
    given = {"tokens": tokens, "size": size}
    update = _looked_up if kind.reads_indices else _multiplied
    return replace(
        kind,
        dims=functools.partial(_dims, width=width),
        update=functools.partial(update, **given),
        delta=functools.partial(_delta, **given),
        tokens=tokens,
        matrix=False,
    )


def _dims(layer: Any, *, width: int) -> tuple[int, int]:
    return 0, width


def _looked_up(layer: nn.Embedding, x: Tensor, A: Tensor, B: Tensor, *, tokens: tuple[int, ...], size: int) -> Tensor:
    """For each index its column of B; a column of zeros for those that aren't trained."""

    def place_of(x: Tensor, A: Tensor) -> Tensor:
        chosen, n = torch.tensor(tokens, device=x.device), len(tokens)
        return chosen.new_full((size,), n).index_copy(0, chosen, torch.arange(n, device=x.device))[x]

    def column_of(place: Tensor, B: Tensor) -> Tensor:
        return nn.functional.embedding(place, nn.functional.pad(B, (0, 1)).mT)

    added = maths.lora_update(x, A, B, down=place_of, up=column_of)
    if layer.padding_idx is None:
        return added
    # The padding index gets no gradient, as in the base.
    return torch.where((x == layer.padding_idx).unsqueeze(-1), added.detach(), added)


def _multiplied(layer: Any, x: Tensor, A: Tensor, B: Tensor, *, tokens: tuple[int, ...], size: int) -> Tensor:
    """The outputs of the trained rows at their places, zeros elsewhere: here the weight is (B A)^T."""

    def placed(own: Tensor, A_T: Tensor) -> Tensor:
        return own.new_zeros(*own.shape[:-1], size).index_copy(-1, torch.tensor(tokens, device=x.device), own)

    return maths.lora_update(x, B.mT, A.mT, up=placed)


def _delta(layer: Any, A: Tensor, B: Tensor, *, tokens: tuple[int, ...], size: int) -> Tensor:
    return B.new_zeros(size, B.shape[0]).index_copy(0, torch.tensor(tokens, device=B.device), B.mT)
