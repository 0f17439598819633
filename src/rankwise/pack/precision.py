"""In which precision a pack computes, and what of a float32 model then runs in bfloat16."""

from typing import Any

import torch
from torch import nn

from rankwise.lora.layer_types import layer_type_of, weight_of

HALF = torch.bfloat16

PRECISIONS = ("float32", "bf16")
"""float32: everything in the type of the model's weights. bf16: the products of linear layers in bfloat16, all else as
in float32."""


def supported(device: torch.device) -> bool:
    """Whether a device multiplies numbers in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for these.
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # pyright: ignore[reportPrivateUsage]


def rounds(module: nn.Module) -> bool:
    """Whether a module's products run in bfloat16: it only multiplies by a float32 matrix.

    Examples:
        >>> rounds(nn.Linear(2, 3)), rounds(nn.Linear(2, 3).double()), rounds(nn.Embedding(2, 3))
        (True, False, False)
    """
    kind = layer_type_of(module)
    if kind is None or not kind.linear or kind.quantised is not None:
        return False
    calls: Any = type(module).forward
    return (calls is nn.Linear.forward or kind.transposed) and weight_of(module).dtype == torch.float32
