"""A model of the zoo: how it is made, what it reads, what comes out of it."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...] | dict[str, Tensor]
"""Arguments of a model, by position or by name."""


@dataclass(frozen=True)
class Entry:
    """One model.

    Args:
        name: Unique in the zoo: "timm/beit", "transformers/gpt2".
        kind: Decoder, vision, ...
        make: Makes it with random weights.
        inputs: Makes a batch of two rows: arguments by position or by name.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Batch]

    def build(self) -> nn.Module:
        """Make the model in eval mode, the same at every call, with no weight at a value that hides what it does.

        Fresh models have gates at zero, residual branches scaled by 1e-6, biases of zero: through these neither
        outputs nor gradients would show an adapter.
        """
        torch.manual_seed(0)
        model = self.make()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            model.eval()
            for parameter in model.parameters():
                if not parameter.is_floating_point() or not parameter.numel() or parameter.min() != parameter.max():
                    continue
                if parameter.ndim > 1 and not parameter.flatten()[0]:
                    parameter.normal_(std=0.02, generator=generator)
                elif abs(float(parameter.flatten()[0])) < 0.5:
                    parameter.uniform_(0.1, 0.3, generator=generator)
            # Some keep what they compute from their weights from here on.
            return model.train().eval()

    def copy(self, model: nn.Module) -> nn.Module:
        """Copy the unchanged model; one that keeps what it computed can't be copied, and is rebuilt."""
        try:
            return copy.deepcopy(model)
        except RuntimeError:
            return self.build()

    def batch(self) -> Batch:
        """Make the batch, the same at every call."""
        torch.manual_seed(2)
        return self.inputs()


def run(model: nn.Module, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    """Run a model on a batch, with the same draws at every call, and return its floating-point outputs."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    torch.manual_seed(3)
    if isinstance(batch, dict):
        result = model(**{name: cast(tensor) for name, tensor in batch.items()})
    else:
        result = model(*map(cast, batch))
    return [tensor for tensor in tensors_in(result) if tensor.is_floating_point() and tensor.numel()]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested result; caches and other objects are passed over."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
