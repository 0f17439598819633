"""Normalise a layer's call arguments; match its output's memory layout."""

from typing import Any

from torch import Tensor


def input_and_rest(kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Split a call with keywords only into the layer's input and the other arguments."""
    key = "input" if "input" in kwargs else next(iter(kwargs))
    return kwargs[key], (), {name: value for name, value in kwargs.items() if name != key}


def laid_out_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the layout of another, by which torch chooses the order of later sums.

    A difference has its operands' layout but for the strides of dimensions of size 1, which it is free to choose.
    """
    if tensor.stride() == like.stride():
        return tensor
    return tensor.new_empty_strided(like.shape, like.stride()).copy_(tensor)
