"""Layers that run again in the backward pass (activation checkpoints): the adapters must be those of the forward pass.

torch recomputes what it needs and sees only that shapes agree, so another adapter's numbers would give wrong gradients
silently. The active adapters are recorded where torch records the forward pass itself:

- Checkpoints without reentrance save tensors and use those of the second run. A tensor that numbers the active set is
  saved along: the second run's must be the first one's.
- Checkpoints with reentrance, and blocks of others that compute their backward pass by running again (reversible
  layers), run without gradients inside a `torch.autograd.Function`. Its call is found on Python's stack, in both runs.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from rankwise.errors import AdapterError
from rankwise.lora.offloaded import in_fake_mode

Acting = tuple[str, ...]
"""Names of the active adapters."""

_numbers: dict[Acting, Tensor] = {}
"""Active adapters -> their number, as a tensor that autograd can save."""

graph_task: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage]
"""-> the number of the backward pass that runs; -1 outside one."""

is_fwd_grad_enabled: Callable[[], bool] = torch._C._is_fwd_grad_enabled  # pyright: ignore[reportPrivateUsage]
"""Whether gradients of forward mode are enabled, as they are under `no_grad` too."""

saving_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore
"""-> the hooks that act on what autograd saves; None where there are none."""

_ACTED = "_rankwise_acted"
"""Attribute of the context of an autograd function: layer -> adapters active in its forward pass."""


def wrong_gradients(now: Acting, then: Acting) -> AdapterError:
    """Return the error for a layer that is recomputed with other adapters."""
    return AdapterError(
        f"The backward pass runs a layer again with the adapters {list(now)}, which ran with {list(then)} in the "
        "forward pass: gradients would be wrong. Call activate, or leave `disabled`, after backward."
    )


class _Mark(torch.autograd.Function):
    """The identity. Its backward compares the adapters active in the forward pass with those in its recomputation."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, acting: Acting, number: Tensor) -> Tensor:
        ctx.acting = acting
        ctx.save_for_backward(number)
        if tensor.is_leaf or tensor._is_view():
            return tensor.view_as(tensor)
        ctx.mark_dirty(tensor)  # a view could not be changed in place by what follows
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (number,) = ctx.saved_tensors
        again = next((acting for acting, own in _numbers.items() if int(own) == int(number)), ctx.acting)
        if again != ctx.acting:
            raise wrong_gradients(again, ctx.acting)
        return gradients[0], None, None


def marked(tensor: Tensor, acting: Acting) -> Tensor:
    """Return an adapter's tensor; inside a checkpoint its backward checks that the same adapters are active again.

    Args:
        tensor: The tensor, which nothing else has but as a parameter.
        acting: The active adapters.
    """
    if not tensor.requires_grad or torch.compiler.is_compiling() or not _is_saved_elsewhere():
        return tensor
    number = _numbers.setdefault(acting, torch.tensor(len(_numbers), device="cpu"))
    return cast("Any", _Mark).apply(tensor, acting, number)


def _is_saved_elsewhere() -> bool:
    """Tell whether hooks act on the tensors that autograd saves, as inside checkpoints."""
    if saving_hooks(False) is None or not torch.is_grad_enabled():
        return False
    return not in_fake_mode() and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore


def in_plain_forward(differentiates: bool) -> bool:
    """Tell whether this is neither in a backward pass nor inside a `torch.autograd.Function`.

    Args:
        differentiates: Whether gradients are enabled.
    """
    if graph_task() != -1:  # in a backward pass
        return False
    # A function's forward pass has neither kind of gradients; code under no_grad has those of forward mode.
    return differentiates or is_fwd_grad_enabled() or torch.is_inference_mode_enabled()


def check_same(layer: nn.Module, acting: Acting) -> None:
    """Compare the active adapters with those of the first run of the autograd functions around this call.

    Args:
        layer: The layer that is called.
        acting: The active adapters.

    Raises:
        AdapterError: They differ.
    """
    if in_plain_forward(torch.is_grad_enabled()):
        return
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("forward", "backward") and code.co_argcount:
            context = frame.f_locals.get(code.co_varnames[0])
            if isinstance(context, FunctionCtx):
                acted: dict[int, Acting] = context.__dict__.setdefault(_ACTED, {})
                if code.co_name == "forward":
                    acted[id(layer)] = acting
                elif acted.get(id(layer), acting) != acting:
                    raise wrong_gradients(acting, acted[id(layer)])
        frame = frame.f_back
