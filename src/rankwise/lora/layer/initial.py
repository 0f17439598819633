"""An adapter's initial tensors: those of each layer, and those that all its layers share."""

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rankwise.lora.config import LoRAConfig
from rankwise.lora.inits import INITS, Decompositions, initial_adapter
from rankwise.lora.layer_types.quantised import plain_weight
from rankwise.lora.targets.target import Target
from rankwise.lora.variants import FORMS, VARIANTS, Site, Sizes

DataOfLayers = Mapping[str, Decompositions]
"""What an initialisation takes from the training data, by module name."""


def initial_tensors(target: Target, config: LoRAConfig, data: DataOfLayers | None = None) -> dict[str, Tensor]:
    """Return an adapter's initial tensors in one layer, without the shared ones.

    In float32, or in float64 over a float64 weight.

    Raises:
        ConfigError: The initialisation needs data, and there are none.
    """
    drawn = functools.partial(_drawn, target, config, None if data is None else data.get(target.name))
    site = Site(target.layer_type, target.module, target.sizes, target.scale, drawn)
    if not torch.is_grad_enabled():  # of thousands of layers whoever calls this switches them off once
        return FORMS[target.variant].start(site)
    with torch.no_grad():
        return FORMS[target.variant].start(site)


def init_obstacle(target: Target, config: LoRAConfig) -> str:
    """Return why the adapter's initialisation can't start a layer; an empty string where it can."""
    init, kind = INITS[config.init], target.layer_type
    if kind.tokens:
        return ""  # rows start as the base's in all of them
    if init.on_matrices and not (kind.is_linear_map and target.stack == 1):
        return f"it starts linear layers only, and this is a {target.type}; leave the layer out, or use another init"
    return init.obstacle(target.module, target.r)


def weight_matrix(target: Target) -> Tensor:
    """Return a linear layer's weight as (d_out, d_in), in float32 or float64."""
    weight = plain_weight(target.module, target.layer_type, target.parameter).detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    return weight.mT if target.layer_type.transposed else weight


def shared_tensors(targets: Iterable[Target], config: LoRAConfig) -> dict[str, Tensor]:
    """Return the tensors that an adapter's layers share, drawn from its seed; most variants have none."""
    sizes = [target.sizes for target in targets if not target.layer_type.tokens]
    if not VARIANTS[config.variant].shared or not sizes:
        return {}
    largest = Sizes(config.r, max(size.d_in for size in sizes), max(size.d_out for size in sizes))
    return VARIANTS[config.variant].share(largest, config.seed)


def with_shared(
    targets: Iterable[Target], tensors: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Give every layer of an adapter's variant the shared tensors in addition to its own."""
    names = {target.name: {tensor.name for tensor in FORMS[target.variant].shared} for target in targets}
    return {
        name: {**own, **{key: tensor for key, tensor in shared.items() if key in names[name]}}
        for name, own in tensors.items()
    }


def _drawn(target: Target, config: LoRAConfig, data: Decompositions | None) -> tuple[Tensor, Tensor]:
    """Draw A and B, matrix by matrix of a stack. Single rows start as the base's."""
    dtype = torch.float64 if target.weight.dtype == torch.float64 else torch.float32
    if target.layer_type.tokens:
        A = torch.zeros(target.r, 0, device="cpu", dtype=dtype)
        return A, torch.zeros(target.d_out, target.r, device="cpu", dtype=dtype)
    embeds = target.layer_type.reads_indices
    d_in, d_out = (target.d_out, target.d_in) if embeds else (target.d_in, target.d_out)
    pairs = [
        initial_adapter(
            config.init,
            seed=config.seed,
            module=target.name if target.stack == 1 else f"{target.name}[{place}]",
            r=target.r,
            d_in=d_in,
            d_out=d_out,
            scale=target.scale,
            weight=Decompositions(functools.partial(weight_matrix, target), target.weight),
            layer=target.module,
            data=data,
        )
        for place in range(target.stack)
    ]
    if embeds:  # A, which picks a column of each index, takes the part of B and is zero
        pairs = [(B.mT.contiguous(), A.mT.contiguous()) for A, B in pairs]
    if len(pairs) == 1:
        return pairs[0][0].to(dtype), pairs[0][1].to(dtype)
    return torch.cat([A for A, _ in pairs]).to(dtype), torch.cat([B for _, B in pairs], 1).to(dtype)
