r"""Convolutions and transposed convolutions, with any stride, padding, dilation and groups.

A convolution is a matrix (out channels, numbers under the kernel) applied at every place, so A is a
convolution of the layer's own geometry to r channels and B one with a kernel of 1:

$$\Delta W_{o,i,k} = \sum_j B_{oj} A_{j,ik}$$

With groups the weight is (out, in / groups, kernel), and A (r, in / groups * kernel) is shared by the groups:
any r will do, a depthwise layer costs r (kernel + channels), and delta has rank r as a matrix.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora import maths
from rankwise.lora.layer_types.layer_type import LayerType, weight_of

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_CONV = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_CONV_TRANSPOSE = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


def _dims(layer: Convolution | TransposedConvolution) -> tuple[int, int]:
    return layer.in_channels // layer.groups * math.prod(layer.kernel_size), layer.out_channels


def _forms_delta(layer: Convolution | TransposedConvolution, r: int) -> bool:
    """Tell whether one convolution with delta takes fewer multiplications a place than A, then B.

    So it does for depthwise layers, where A makes r channels of each one.
    """
    d_in, d_out = _dims(layer)
    return d_out * d_in <= r * (layer.groups * d_in + d_out)


def _pointwise(layer: Convolution | TransposedConvolution, h: Tensor, B: Tensor) -> Tensor:
    n_dims = len(layer.kernel_size)
    return _CONV[n_dims - 1](h, B.view(*B.shape, *[1] * n_dims), groups=layer.groups)


# Convolution


def _convolve(layer: Convolution, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The layer's own convolution, with another weight and without a bias."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        both_sides: Sequence[int] = layer._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]
        x, padding = nn.functional.pad(x, both_sides, mode=layer.padding_mode), 0
    convolve: Callable[..., Tensor] = _CONV[len(layer.kernel_size) - 1]
    return convolve(x, weight, None, layer.stride, padding, layer.dilation, groups)


def crosses_groups(layer: nn.Module, A: Tensor) -> bool:
    """Tell whether this A reads all channels, which no weight of a grouped convolution can.

    PEFT trains such adapters: A (r, in * kernel) without groups, B (out, r / groups) with them.
    """
    return isinstance(layer, Convolution) and A.shape[-1] != _dims(layer)[0]


def _update(layer: Convolution, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    crosses = crosses_groups(layer, A)
    if not crosses and _forms_delta(layer, A.shape[0]):
        return _convolve(layer, x, _delta(layer, A, B), layer.groups)

    def down(x: Tensor, A: Tensor) -> Tensor:
        kernels = A.view(A.shape[0], -1, *layer.kernel_size)
        shared = layer.groups > 1 and not crosses
        return _convolve(
            layer, x, torch.cat([kernels] * layer.groups) if shared else kernels, 1 if crosses else layer.groups
        )

    return maths.lora_update(x, A, B, down=down, up=functools.partial(_pointwise, layer))


def _delta(layer: Convolution, A: Tensor, B: Tensor) -> Tensor:
    if crosses_groups(layer, A):
        raise AdapterError(
            f"An adapter of this {type(layer).__name__} reads all {layer.in_channels} channels, a row of the weight "
            f"only those of one of {layer.groups} groups, so delta can't be added to it. Such an adapter (PEFT's) acts "
            "unmerged, where the layer is called; where its weight is read without a call, leave the layer out."
        )
    return maths.lora_delta(A, B).view(weight_of(layer).shape)


# Transposed convolution


def _convolve_transposed(
    layer: TransposedConvolution, x: Tensor, weight: Tensor, output_size: list[int] | None
) -> Tensor:
    n_dims = len(layer.kernel_size)
    find_padding: Callable[..., list[int]] = layer._output_padding  # pyright: ignore[reportPrivateUsage]
    padding = find_padding(x, output_size, layer.stride, layer.padding, layer.kernel_size, n_dims, layer.dilation)
    convolve: Callable[..., Tensor] = _CONV_TRANSPOSE[n_dims - 1]
    return convolve(x, weight, None, layer.stride, layer.padding, padding, layer.groups, layer.dilation)


def _update_transposed(
    layer: TransposedConvolution, x: Tensor, A: Tensor, B: Tensor, output_size: list[int] | None = None
) -> Tensor:
    if _forms_delta(layer, A.shape[0]):
        return _convolve_transposed(layer, x, _delta_transposed(layer, A, B), output_size)

    def down(x: Tensor, A: Tensor) -> Tensor:
        kernels = A.view(A.shape[0], -1, *layer.kernel_size).transpose(0, 1)
        kernels = torch.cat([kernels] * layer.groups) if layer.groups > 1 else kernels
        return _convolve_transposed(layer, x, kernels, output_size)

    return maths.lora_update(x, A, B, down=down, up=functools.partial(_pointwise, layer))


def _delta_transposed(layer: TransposedConvolution, A: Tensor, B: Tensor) -> Tensor:
    """Delta as the weight has it: (in, out / groups, kernel), where a Conv has (out, in / groups, kernel)."""
    groups, kernel = layer.groups, layer.kernel_size
    by_group = maths.lora_delta(A, B).view(groups, layer.out_channels // groups, layer.in_channels // groups, *kernel)
    return by_group.transpose(1, 2).reshape(layer.in_channels, layer.out_channels // groups, *kernel)


CONV: dict[str, LayerType] = {
    f"torch.nn.modules.conv.{name}": LayerType(name, _dims, _update, _delta, outputs=0)
    for name in ("Conv1d", "Conv2d", "Conv3d")
}
CONV_TRANSPOSE: dict[str, LayerType] = {
    f"torch.nn.modules.conv.{name}": LayerType(name, _dims, _update_transposed, _delta_transposed)
    for name in ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
}
