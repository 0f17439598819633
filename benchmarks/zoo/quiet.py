"""Training mode without randomness."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


class _NoDropout(TorchFunctionMode):
    """Dropout called as a function lets everything pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS or func is torch.dropout:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def _is_noisy(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) or "drop" in type(module).__name__.lower()


@contextmanager
def training_without_noise(model: nn.Module) -> Generator[None]:
    """Training mode, but nothing is dropped and batch normalisation uses its running statistics."""
    before = {module: module.training for module in model.modules()}
    model.train()
    for module in model.modules():
        if _is_noisy(module):
            module.eval()
    try:
        with _NoDropout():
            yield
    finally:
        for module, mode in before.items():
            module.training = mode
