"""An adapter's initial tensors: those of each layer, and those that all its layers share."""

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rankwise.lora.config import LoRAConfig
from rankwise.lora.inits import initial_adapter
from rankwise.lora.targets.target import Target
from rankwise.lora.variants import VARIANTS, Site, Sizes


def initial_tensors(target: Target, config: LoRAConfig) -> dict[str, Tensor]:
    """Return an adapter's initial tensors in one layer, without the shared ones.

    In float32, or in float64 over a float64 weight.
    """
    site = Site(target.layer_type, target.module, target.sizes, target.scale, functools.partial(_drawn, target, config))
    with torch.no_grad():
        return VARIANTS[target.variant].start(site)


def shared_tensors(targets: Iterable[Target], config: LoRAConfig) -> dict[str, Tensor]:
    """Return the tensors that an adapter's layers share, drawn from its seed; most variants have none."""
    sizes = [target.sizes for target in targets if target.variant == config.variant]
    if not VARIANTS[config.variant].shared or not sizes:
        return {}
    largest = Sizes(config.r, max(size.d_in for size in sizes), max(size.d_out for size in sizes))
    return VARIANTS[config.variant].share(largest, config.seed)


def with_shared(
    targets: Iterable[Target], tensors: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Give every layer of an adapter's variant the shared tensors in addition to its own."""
    names = {target.name: {tensor.name for tensor in VARIANTS[target.variant].shared} for target in targets}
    return {
        name: {**own, **{key: tensor for key, tensor in shared.items() if key in names[name]}}
        for name, own in tensors.items()
    }


def _drawn(target: Target, config: LoRAConfig) -> tuple[Tensor, Tensor]:
    """Draw A and B, matrix by matrix of a stack. Single rows start as the base's."""
    dtype = torch.float64 if target.weight.dtype == torch.float64 else torch.float32
    if target.layer_type.tokens:
        A = torch.zeros(target.r, 0, device="cpu", dtype=dtype)
        return A, torch.zeros(target.d_out, target.r, device="cpu", dtype=dtype)
    pairs = [
        initial_adapter(
            config.init,
            seed=config.seed,
            module=target.name if target.stack == 1 else f"{target.name}[{place}]",
            r=target.r,
            d_in=target.d_in,
            d_out=target.d_out,
            zero_A=target.layer_type.reads_indices,
        )
        for place in range(target.stack)
    ]
    return torch.cat([A for A, _ in pairs]).to(dtype), torch.cat([B for _, B in pairs], 1).to(dtype)
