"""The calls by which a forward pass draws noise, and what answers them from uniform numbers.

Every draw here is a function of one uniform number for each element, so whoever gives those numbers decides what is
drawn: `rankwise.pack.noise.keyed` keys them to seeds, `rankwise.pack.model.trace` notes that they were asked for.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@runtime_checkable
class Source(Protocol):
    """Gives the numbers. It may not itself draw from a generator that a model could draw from; so its shapes are no
    sequences, of which a checker of types would pick an element at random."""

    def numbers(self, shape: torch.Size, like: Tensor | None, **where: Any) -> Tensor:
        """Uniform numbers in [0, 1) of a shape, in the type and on the device of a tensor or of `where`."""
        ...

    def dropout(self, x: Tensor, p: float, shape: torch.Size) -> Tensor:
        """x with elements set to zero with probability p, the others over 1 - p; the mask has this shape."""
        ...


class NoiseMode(TorchFunctionMode):
    """Answers calls that draw noise, while a module runs.

    Args:
        source: Gives the numbers.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(func)
        result = NotImplemented if answer is None else answer(self._source, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def _dropout(
    source: Source, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **named: Any
) -> Any:
    if not named.get("train", training) or p == 0:
        return NotImplemented
    return _into(input, source.dropout(input, p, input.shape), inplace)


def _dropout_in_place(source: Source, input: Tensor, p: float, train: bool) -> Any:
    return _dropout(source, input, p, train, inplace=True)


def _channels(source: Source, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if not training or p == 0:
        return NotImplemented
    return _into(input, source.dropout(input, p, torch.Size((*input.shape[:2], *[1] * (input.dim() - 2)))), inplace)


def _into(x: Tensor, result: Tensor, inplace: bool) -> Tensor:
    return x.copy_(result) if inplace else result


def _attention(
    source: Source,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`F.scaled_dot_product_attention` with dropout of the attention weights, by its definition."""
    if dropout_p == 0:
        return NotImplemented
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return source.dropout(weights, dropout_p, weights.shape) @ value


def _multi_head(source: Source, *args: Any, **kwargs: Any) -> Any:
    """The function's own code, with its calls of dropout and attention answered: while a mode answers a call, what is
    called inside it passes by the mode."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    if not given.arguments["training"] or given.arguments["dropout_p"] == 0:
        return NotImplemented

    def answered(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = ANSWERS[function](source, *args, **kwargs)
            return function(*args, **kwargs) if result is NotImplemented else result

        return call

    own = F.multi_head_attention_forward
    inside = {function.__name__: answered(function) for function in (F.dropout, F.scaled_dot_product_attention)}
    code = FunctionType(own.__code__, {**own.__globals__, **inside}, own.__name__, own.__defaults__)
    code.__kwdefaults__ = own.__kwdefaults__
    return code(*args, **kwargs)


def _rand(source: Source, *size: Any, generator: Any = None, out: Any = None, **where: Any) -> Any:
    if generator is not None or out is not None:
        return NotImplemented
    return source.numbers(_shape(size, where), None, **where)


def _rand_like(source: Source, input: Tensor, **where: Any) -> Any:
    return NotImplemented if where.get("generator") is not None else source.numbers(input.shape, input, **where)


def _randn(source: Source, *size: Any, generator: Any = None, out: Any = None, **where: Any) -> Any:
    if generator is not None or out is not None:
        return NotImplemented
    return _normal(source.numbers(_shape(size, where), None, **where))


def _randn_like(source: Source, input: Tensor, **where: Any) -> Any:
    if where.get("generator") is not None:
        return NotImplemented
    return _normal(source.numbers(input.shape, input, **where))


def _normal(u: Tensor) -> Tensor:
    """Normal numbers from uniform ones, which are multiples of 2^-24."""
    return torch.erfinv(2 * (u.double() + 2.0**-25) - 1).mul_(2**0.5).to(u.dtype)


def _shape(size: Sequence[Any], where: dict[str, Any]) -> torch.Size:
    size = where.pop("size", size)
    return torch.Size(size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size)


def _bernoulli_in_place(source: Source, input: Tensor, p: Any = 0.5, *, generator: Any = None) -> Any:
    if generator is not None:
        return NotImplemented
    return input.copy_(source.numbers(input.shape, None, device=input.device) < p)


def _bernoulli(source: Source, input: Tensor, p: Any = None, *, generator: Any = None, out: Any = None) -> Any:
    if generator is not None or out is not None:
        return NotImplemented
    chance = input if p is None else p
    return (source.numbers(input.shape, None, device=input.device) < chance).to(input.dtype)


def _uniform_in_place(
    source: Source, input: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Any = None, **named: float
) -> Any:
    if generator is not None:
        return NotImplemented
    low, high = named.get("from", a), named.get("to", b)
    return input.copy_(low + (high - low) * source.numbers(input.shape, None, device=input.device))


def _normal_in_place(
    source: Source, input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None
) -> Any:
    if generator is not None:
        return NotImplemented
    return input.copy_(mean + std * _normal(source.numbers(input.shape, None, device=input.device)))


ANSWERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    torch.dropout_: _dropout_in_place,
    F.dropout1d: _channels,
    F.dropout2d: _channels,
    F.dropout3d: _channels,
    torch.feature_dropout: _channels,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
    torch.rand: _rand,
    torch.rand_like: _rand_like,
    torch.randn: _randn,
    torch.randn_like: _randn_like,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_in_place,
    Tensor.uniform_: _uniform_in_place,
    Tensor.normal_: _normal_in_place,
}
"""Function that draws -> its answer; NotImplemented where the call draws nothing, or from its own generator."""
