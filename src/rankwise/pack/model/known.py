"""Recognise a model in which nothing but torch's own code runs: a Sequential of activations and linear layers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torchs

from rankwise.lora.checks.threads import has_hooks
from rankwise.pack.batches import Batch, call_model, input_of

_SEQUENTIAL = nn.Sequential.forward

_KNOWN: dict[type[nn.Module], Any] = {
    kind: kind.forward
    for kind in (
        *(nn.Linear, nn.Identity, nn.Dropout, nn.LayerNorm, nn.RMSNorm),
        *(
            nn.ReLU,
            nn.ReLU6,
            nn.LeakyReLU,
            nn.ELU,
            nn.SELU,
            nn.CELU,
            nn.GELU,
            nn.SiLU,
            nn.Mish,
            nn.Softplus,
            nn.Softsign,
        ),
        *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Softmax, nn.LogSoftmax),
    )
}
"""Modules that compute each row of (rows, width) by itself and keep nothing between calls, with their forward."""


def known_sequence(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a Sequential in their order, each with its first path, where all that runs in them is torch's own
    code: no subclass, no hook, no other or compiled forward, no weight that is more than its numbers. Else none.

    Such a model draws random numbers in its Dropouts alone, writes to nothing, and counts nothing.

    Examples:
        >>> known_sequence(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        [('0.0', Linear(in_features=2, out_features=2, bias=True)), ('0.1', ReLU())]
        >>> known_sequence(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        []
    """
    found = list(_leaves(model, ""))
    if torchs._has_any_global_hook() or not all(_is_known(module) for _, module in found):  # pyright: ignore[reportPrivateUsage]
        return []
    paths: dict[nn.Module, str] = {}
    return [(paths.setdefault(module, path), module) for path, module in found]


def computes_rows(model: nn.Module, call: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> bool:
    """Whether it is known without a look that a model computes each row of a batch by itself, alike at every pass.

    Args:
        model: The model.
        call: How it is run on a batch.
        batch: The batch.
    """
    return call is call_model and flat_input(batch) is not None and bool(known_sequence(model))


def flat_input(batch: Batch) -> Tensor | None:
    """The rows of numbers (rows, width) with which a model of one argument is called, or None."""
    if isinstance(batch, Mapping):
        return None
    x = input_of(batch)
    return x if type(x) is Tensor and x.dim() == 2 else None


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside nested Sequentials; a module that is no plain Sequential stands for itself."""
    if type(module) is not nn.Sequential or nn.Sequential.forward is not _SEQUENTIAL or _is_changed(module):
        yield path, module
        return
    for name, child in module._modules.items():  # pyright: ignore[reportPrivateUsage]
        yield from _leaves(child, f"{path}.{name}" if path else name)


def _is_known(module: nn.Module) -> bool:
    forward = _KNOWN.get(type(module))
    if forward is None or type(module).forward is not forward or forward.__module__ != type(module).__module__:
        return False
    if isinstance(module, nn.Softmax | nn.LogSoftmax) and module.dim not in (1, -1):
        return False  # it may sum over rows
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return False
    plain = all(type(parameter) in (nn.Parameter, type(None)) for parameter in module._parameters.values())  # pyright: ignore[reportPrivateUsage]
    return plain and not module._modules and not module._buffers and not _is_changed(module)  # pyright: ignore[reportPrivateUsage]


def _is_changed(module: nn.Module) -> bool:
    """Whether a call of this instance runs something else than its class's forward."""
    own = module.__dict__
    return "forward" in own or own.get("_compiled_call_impl") is not None or has_hooks(module)
