"""The mode in which a pack runs its base."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.spectral_norm import SpectralNorm


def set_mode(model: nn.Module, training: bool) -> None:
    """Train or eval mode, but what would update its own statistics stays in eval mode: BatchNorm and InstanceNorm
    with running statistics, spectral norms."""
    model.train(training)
    if training:
        for module in _with_statistics(model):
            module.eval()


@contextmanager
def left_as_found(model: nn.Module) -> Generator[None]:
    """Inside this block no parameter asks for a gradient; afterwards all modes and flags are as they were."""
    modes = {module: module.training for module in model.modules()}
    required = {p: p.requires_grad for p in model.parameters()}
    try:
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def statistics_frozen(model: nn.Module) -> Generator[None]:
    """Inside this block modules with their own statistics are in eval mode: of a spectral norm, reading the weight
    in train mode is enough to update them."""
    modes = {module: module.training for module in _with_statistics(model)}
    try:
        for module in modes:
            module.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _with_statistics(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _has_statistics(module)]


def _has_statistics(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._NormBase):  # pyright: ignore[reportPrivateUsage]
        return isinstance(module, nn.modules.batchnorm._BatchNorm) or bool(module.track_running_stats)  # pyright: ignore[reportPrivateUsage]
    hooks = module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)


@contextmanager
def in_eval(model: nn.Module) -> Generator[None]:
    """Inside this block a model is in eval mode; afterwards each module has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
