"""The side effects of a forward pass: buffers and random streams, saved so that it can run a second time."""

import random
import sys
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.lora.base.buffers import LARGEST


class Snapshot:
    """The buffers of a model and the states of the random streams, as they are now.

    Args:
        model: The model; buffers larger than 64 MiB are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()  # pyright: ignore[reportPrivateUsage]
            if buffer is not None and not buffer.is_meta and buffer.nbytes <= LARGEST
        ]
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.python = random.getstate()
        numpy: Any = sys.modules.get("numpy")
        self.numpy: Any = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Restore everything."""
        with torch.no_grad():
            for module, name, buffer, values in self.buffers:
                buffer.copy_(values)
                module._buffers[name] = buffer  # pyright: ignore[reportPrivateUsage]
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
