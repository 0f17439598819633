"""The suite's own checks of types and shapes: what they refuse, and what they let through."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import typecheck


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    return jaxtyping.jaxtyped(function, typechecker=typecheck.check)


@checked
def plain(name: str, n: float = 1) -> list[int]:
    return [len(name)] if n else ["none"]  # pyright: ignore[reportReturnType]


@checked
def shaped(x: Float[Tensor, "*b d_in"], W: Float[Tensor, "d_out d_in"], cut: int = 0) -> Float[Tensor, "*b d_out"]:
    return (x @ W.T)[..., cut:]


@checked
def numbers(n: int) -> Iterator[int]:
    yield n


def inner(first: int) -> Callable[..., Any]:
    @checked
    def cut(x: Float[Tensor, "n n"], end: int | None = None) -> Float[Tensor, "n n"]:
        return x[first:end]

    return cut


X, W = torch.ones(2, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: plain(1),
        lambda: plain("a", n="1"),
        lambda: plain("a", 0),
        lambda: numbers("a"),
        lambda: shaped(X, torch.ones(4, 2)),
        lambda: shaped(X.long(), W),
        lambda: shaped(X, W, cut=1),
        lambda: inner(0)(X),
        lambda: inner(0)(X[:, :2], "1"),
        lambda: inner(1)(X[:, :2]),
    ],
)
def test_what_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        call()


def test_what_is_let_through() -> None:
    assert plain("ab", 2) == [2]
    assert list(numbers(3)) == [3]
    assert shaped(X, W).shape == (2, 4)
    assert shaped(X[None], W[:1]).shape == (1, 2, 1), "each call has dimensions of its own"
    assert [len(inner(0)(torch.ones(n, n))) for n in (1, 2)] == [1, 2]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        plain()


def test_a_refusal_names_the_sizes_before_it() -> None:
    with pytest.raises(TypeError) as error:
        shaped(X, torch.ones(4, 2))
    assert "d_in=3" in error.value.__notes__[0]


@pytest.mark.usefixtures("unchecked")
def test_off() -> None:
    assert plain("a", 0) == ["none"]
