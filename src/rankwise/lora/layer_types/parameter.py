"""A parameter of its own: a matrix, or a stack of matrices (the experts of a mixture), read by a module's code."""

import functools
from typing import Any

from torch import Tensor

from rankwise.errors import AdapterError
from rankwise.lora import maths
from rankwise.lora.layer_types.layer_type import LayerType


def _is_in_out(layer: Any, weight: Tensor) -> bool:
    """Tell whether a stack is (experts, in, out), as transformers marks it, not (experts, out, in)."""
    return weight.ndim == 3 and bool(getattr(layer, "is_transposed", False))


def _dims(layer: Any, *, name: str) -> tuple[int, int]:
    weight: Tensor = getattr(layer, name)
    *_, d_out, d_in = weight.shape
    return (d_out, d_in) if _is_in_out(layer, weight) else (d_in, d_out)


def _stack(layer: Any, *, name: str) -> int:
    weight: Tensor = getattr(layer, name)
    return weight.shape[0] if weight.ndim == 3 else 1


def _delta(layer: Any, A: Tensor, B: Tensor, *, name: str) -> Tensor:
    """B A; for a stack A is (experts * r, d_in) and B (d_out, experts * r), expert after expert."""
    weight: Tensor = getattr(layer, name)
    if weight.ndim == 2:
        return maths.lora_delta(A, B)
    n = weight.shape[0]
    delta = maths.lora_delta(A.unflatten(0, (n, -1)), B.unflatten(1, (n, -1)).transpose(0, 1))
    return delta.mT if _is_in_out(layer, weight) else delta


def _never_called(layer: Any, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    raise AdapterError(f"A parameter of a {type(layer).__name__} has no input of its own; add its delta to the weight.")


@functools.cache
def parameter_type(name: str, linear: bool = False) -> LayerType:
    """Return the layer type of a parameter called `name`.

    Examples:
        >>> from torch import nn
        >>> parameter_type("weight_ih_l0").dims(nn.LSTM(3, 2))
        (3, 8)
    """
    given = {"name": name}
    return LayerType(
        "Parameter",
        functools.partial(_dims, **given),
        _never_called,
        functools.partial(_delta, **given),
        linear=linear,
        outputs=0,
        parameter=name,
        stack=functools.partial(_stack, **given),
    )
