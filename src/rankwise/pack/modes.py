"""The mode in which a pack runs its base."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.spectral_norm import SpectralNorm

from rankwise.lora.base.modes import modes_restored


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
    required = {p: p.requires_grad for p in model.parameters()}
    try:
        with modes_restored(model.modules()):
            model.requires_grad_(False)
            yield
    finally:
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def statistics_frozen(model: nn.Module) -> Generator[None]:
    """Inside this block modules with their own statistics are in eval mode: of a spectral norm, reading the weight
    in train mode is enough to update them."""
    modules = _with_statistics(model)
    with modes_restored(modules):
        for module in modules:
            module.eval()
        yield


def _with_statistics(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _has_statistics(module)]


def _has_statistics(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._NormBase):  # pyright: ignore[reportPrivateUsage]
        return isinstance(module, nn.modules.batchnorm._BatchNorm) or bool(module.track_running_stats)  # pyright: ignore[reportPrivateUsage]
    hooks = module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)
