"""Which weight of a model each pair of tensors in a file belongs to, both ways."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rankwise.errors import suggest
from rankwise.files.findings import Findings
from rankwise.files.layer_tensors import form_of, growth_of, is_compact
from rankwise.lora.adapter import LoRA
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer_types import LayerType, obstacle
from rankwise.lora.layer_types.convolution import Convolution
from rankwise.lora.layer_types.sliced import block_form
from rankwise.lora.modules import Named, named_once
from rankwise.lora.patterns import matching_values, pinned
from rankwise.lora.readers import Weight, layers_and_owned, other_parameters, reader_of
from rankwise.lora.targets import Target
from rankwise.lora.ties import find_ties, flip, sharers
from rankwise.lora.variants import VARIANTS

Pair = tuple[Tensor, Tensor]
Layers = Mapping[str, tuple[nn.Module, LoRA]]

_IN_PROJ, _OUT_PROJ = "in_proj_weight", "out_proj"
"""What PEFT writes of an attention, as the attention's own and as `base_layer.out_proj`."""


def _file_path(path: str, attentions: Mapping[str, nn.Module]) -> str:
    """Return the path under which PEFT has a weight.

    Examples:
        >>> [_file_path(path, {"a": nn.MultiheadAttention(2, 1)}) for path in ("a.in_proj_weight", "a.out_proj", "b")]
        ['a', 'a.base_layer.out_proj', 'b']
    """
    owner, _, leaf = path.rpartition(".")
    if owner not in attentions or leaf not in (_IN_PROJ, _OUT_PROJ):
        return path
    return owner if leaf == _IN_PROJ else ".".join(filter(None, (owner, "base_layer", _OUT_PROJ)))


def _attentions(modules: Iterable[Named]) -> dict[str, nn.Module]:
    return {name: module for module, names in modules if isinstance(module, nn.MultiheadAttention) for name in names}


# Writing

_MOST_GROWTH = 2**28
"""How many numbers (1 GiB in float32) may be written where PEFT's form of grouped convolutions adds zeros."""


def as_filed(
    model: nn.Module, layers: Layers, name: str, config: LoRAConfig
) -> tuple[LoRAConfig, dict[str, tuple[Tensor, Tensor]]]:
    """Return A and B of every weight as PEFT shapes them, by PEFT's path.

    Args:
        model: The injected model.
        layers: Its adapted layers.
        name: The adapter.
        config: Its configuration.

    Returns:
        The configuration, with alphas that keep the scales where PEFT's shape changes r, and the tensors.
    """
    attentions = _attentions(named_once(model))
    tensors: dict[str, Pair] = {}
    alphas: dict[str, float] = {}
    patterned = matching_values(config.alpha_pattern, layers)
    compact = _is_too_large(layers, name)
    for path, (layer, lora) in layers.items():
        row, filed = lora.row_of(name), _file_path(path, attentions)
        A, B = (tensor.detach() for tensor in lora.pair(name))
        # PEFT has no slices: an ordinary adapter of the summed rank is the same function.
        whole = block_form(B, row.slices, lora.layer_type.dims(layer)[1]) if row.slices else B
        tensors[filed] = form_of(row, compact and growth_of(layer, A) > 1).write(layer, A, whole)
        growth = tensors[filed][0].shape[0] * row.stack(layer) // A.shape[0]
        alphas[filed] = patterned.get(path, config.alpha) * _alpha_factor(config, growth)
    return replace(config, alpha_pattern=pinned(alphas, config.alpha)), tensors


def magnitudes_as_filed(model: nn.Module, layers: Layers, name: str) -> dict[str, Tensor]:
    """Return DoRA's magnitudes as PEFT shapes them, by PEFT's path."""
    attentions = _attentions(named_once(model))
    return {
        _file_path(path, attentions): tensor.detach().view(_magnitude_shape(layer, tensor.numel()))
        for path, (layer, lora) in layers.items()
        for tensor in lora.own(name).values()
    }


def magnitudes_of_file(
    model: nn.Module, targets: Iterable[Target], magnitudes: Mapping[str, Tensor], findings: Findings
) -> dict[str, dict[str, Tensor]]:
    """Return DoRA's magnitudes of a file by the targets' names, without those that don't fit."""
    attentions = _attentions(named_once(model))
    own: dict[str, dict[str, Tensor]] = {}
    for target in targets:
        paths = [_file_path(name, attentions) for name in (target.name, *target.aliases)]
        path = next(path for path in paths if path in magnitudes)
        tensor, needed = magnitudes[path], _magnitude_shape(target.module, target.d_out)
        if tuple(tensor.shape) != needed or not tensor.is_floating_point():
            findings.add(
                f'The magnitudes of "{path}" have shape {tuple(tensor.shape)} and type {tensor.dtype}; the base layer '
                f"needs {needed} floating-point numbers. Was it trained on another model?"
            )
        else:
            own[target.name] = {"magnitude": tensor.flatten()}
    return own


def _magnitude_shape(layer: nn.Module, d_out: int) -> tuple[int, ...]:
    return (1, d_out, *(1,) * len(layer.kernel_size)) if isinstance(layer, Convolution) else (d_out,)


def _is_too_large(layers: Layers, name: str) -> bool:
    """Tell whether PEFT's form would be too large a file, and warn that PEFT can't read this one then."""
    grown = [(lora.A[name].numel(), growth_of(layer, lora.A[name])) for layer, lora in layers.values()]
    numbers = sum(own * growth for own, growth in grown if growth > 1)
    if numbers <= _MOST_GROWTH:
        return False
    convolutions, ours = sum(growth > 1 for _, growth in grown), sum(own for own, growth in grown if growth > 1)
    warnings.warn(
        f"The A of {convolutions} grouped convolutions is written in a form of Rankwise's own ({ours:,} numbers), "
        f"because PEFT's would have {numbers:,}, nearly all zeros. PEFT can't read the file.",
        stacklevel=4,
    )
    return True


def key_ends(model: nn.Module, layers: Layers) -> dict[str, tuple[str, str]]:
    """Return the ends of the keys of A and B, by PEFT's path."""
    attentions = _attentions(named_once(model))
    return {_file_path(path, attentions): form_of(lora.layer_type).keys for path, (_, lora) in layers.items()}


def _alpha_factor(config: LoRAConfig, growth: int) -> float:
    """By what alpha grows with r if the scale is to stay: growth, or its root for the rank-stabilised scale."""
    return growth / config.scale(r=growth, alpha=growth)


# Reading


def targets_of_file(
    model: nn.Module, config: LoRAConfig, tensors: Mapping[str, Pair], untie: bool, findings: Findings
) -> tuple[list[Target], dict[str, Pair]]:
    """Find the weight of every pair of tensors that fits one.

    Args:
        model: The base.
        config: The file's configuration.
        tensors: PEFT's path -> A and B as PEFT shapes them.
        untie: Whether layers that share their weight each get a copy.
        findings: Takes a pair that has no place, or doesn't fit it.

    Returns:
        The targets, and A and B as matrices by the targets' names.
    """
    modules = named_once(model)
    attentions = _attentions(modules)
    # Layers last: where a parameter and a layer have one path, the layer is meant.
    weights = {
        name: weight
        for found in (other_parameters(modules), layers_and_owned(modules))
        for weight in found
        for name in weight.names
    }
    filed = {_file_path(name, attentions): name for name in weights}
    alphas = matching_values(config.alpha_pattern, tensors)
    targets: dict[int, Target] = {}
    converted: dict[str, Pair] = {}
    for path, (A, B) in tensors.items():
        weight = weights.get(filed.get(path, path))
        if weight is None:
            findings.add(
                f'The adapter has tensors for "{path}", which the model lacks.{suggest(path, filed)} '
                "Was it trained on another model?"
            )
            continue
        if id(weight) in targets:
            findings.add(
                f'The adapter has tensors for "{targets[id(weight)].name}" and for "{path}", which are one module here.'
            )
            continue
        target = _target(model, weight, path, (A, B), config, alphas.get(path, config.alpha), findings)
        if target is None:
            continue
        targets[id(weight)] = target
        form = form_of(target.layer_type, is_compact(target.module, A))
        converted[target.name] = form.read(target.module, A, B)
    found = list(targets.values())
    if VARIANTS[config.variant].transposes or untie:
        found = _joined(model, modules, weights, found, converted, untie)
    return found, converted


def _target(
    model: nn.Module,
    weight: Weight,
    path: str,
    tensors: Pair,
    config: LoRAConfig,
    filed_alpha: float,
    findings: Findings,
) -> Target | None:
    module, row, r = weight.module, weight.layer_type, tensors[0].shape[0]
    blocked = "" if row is not None and row.name == "Parameter" else obstacle(module)
    if row is None or blocked:
        findings.add(f'The adapter has tensors for "{path}", a {type(module).__name__} here: {blocked}.')
        return None
    form = form_of(row, is_compact(module, tensors[0]))
    for place, (letter, tensor, needed) in enumerate(zip("AB", tensors, form.shapes(row, module, r), strict=True)):
        if tensor.shape != needed:
            text = ", ".join("r" if n == place else str(size) for n, size in enumerate(needed))
            findings.add(
                f'lora_{letter} of "{path}" has shape {tuple(tensor.shape)}; the base layer needs ({text}). '
                + _cause(row, tensor, needed)
            )
            return None
    own_r = form.read(module, *tensors)[0].shape[0] // row.stack(module)
    growth = r // own_r
    alpha = filed_alpha / _alpha_factor(config, growth)
    d_in, d_out = row.dims(module)
    return Target(
        name=weight.names[0],
        module=module,
        layer_type=row,
        d_in=d_in,
        d_out=d_out,
        r=own_r,
        alpha=alpha,
        scale=config.scale(own_r, alpha),
        aliases=tuple(weight.names[1:]),
        parameter=weight.parameter,
        reader=reader_of(model, weight),
    )


def _cause(row: LayerType, tensor: Tensor, needed: tuple[int, ...]) -> str:
    """Guess why shapes differ."""
    if row.reads_indices and tensor.ndim == 2 and tensor.shape[0] == needed[0] and tensor.shape[1] > needed[1]:
        return (
            "Was it trained on another model, or with a larger vocabulary? For that call "
            f"model.resize_token_embeddings({tensor.shape[1]}) first."
        )
    return "Was it trained on another model?"


def _joined(
    model: nn.Module,
    modules: Sequence[Named],
    weights: Mapping[str, Weight],
    targets: list[Target],
    tensors: Mapping[str, Pair],
    untie: bool,
) -> list[Target]:
    """Make one target of those that share a weight and have the same A and B for it; keep the model's order."""
    by_name = {target.name: target for target in targets}
    for users in sharers(modules).values():
        found = [by_name[names[0]] for _, names in users if names[0] in by_name]
        if untie:
            by_name |= {target.name: replace(target, untie=True) for target in found}
        elif len(found) == len(users):
            first = found[0]
            _, ties = find_ties(model, modules, [weights[first.name]])
            if all(
                by_name[tie.name].scale == first.scale and _same(tensors[first.name], tensors[tie.name], tie.flipped)
                for tie in ties[first.name]
            ):
                by_name[first.name] = replace(first, ties=ties[first.name])
                for tie in ties[first.name]:
                    del by_name[tie.name]
    place = {module: i for i, (module, _) in enumerate(modules)}
    return sorted(by_name.values(), key=lambda target: place[target.module])


def _same(one: Pair, other: Pair, flipped: bool) -> bool:
    return all(map(torch.equal, one, flip(*other) if flipped else other))
