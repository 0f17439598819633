"""Map the pairs of tensors in a file to the weights of a model, and back."""

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.peft.config import PeftName
from rankwise.adapter_files.peft.layer_tensors import form_of, growth_of, is_compact
from rankwise.adapter_files.peft.paths import IN_PROJ, PeftLocation, PeftPaths, paths_of_file, paths_of_layers
from rankwise.errors import AdapterError, suggest
from rankwise.lora.adapter import LoRA
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inits import INITS
from rankwise.lora.layer_types import LayerType, obstacle
from rankwise.lora.layer_types.parameter import parameter_type
from rankwise.lora.layer_types.sliced import block_form
from rankwise.lora.targets.find import Target
from rankwise.lora.targets.modules import Named
from rankwise.lora.targets.patterns import matching_values, pinned
from rankwise.lora.targets.readers import Weight, layers_and_owned, other_parameters, reader_of
from rankwise.lora.targets.ties import find_ties, flip, sharers
from rankwise.lora.variants import FORMS, VARIANTS, form_name
from rankwise.lora.variants.from_start import in_one_pair

Pair = tuple[Tensor, Tensor]
Layers = Mapping[str, tuple[nn.Module, LoRA]]

# Writing

_MOST_GROWTH = 2**28
"""How many numbers (1 GiB in float32) may be written where PEFT's form of grouped convolutions adds zeros."""


@dataclass(frozen=True)
class FileLayout:
    """An adapter as it lies in a file.

    Args:
        config: Its configuration, whose alphas are those of the settings' names and keep the scales where PEFT's shape
            changes r.
        tensors: PEFT's path -> A and B as PEFT shapes them.
        setting_names: PEFT's path -> what the settings call it.
        key_ends: PEFT's path -> ends of the keys of A and B.
        own: PEFT's path -> what the variant has there in addition to A and B, by name, as PEFT shapes it.
        shared: What all layers share, by name.
        paths: Where PEFT has the weights.
    """

    config: LoRAConfig
    tensors: dict[str, Pair]
    setting_names: dict[str, PeftName]
    key_ends: dict[str, tuple[str, str]]
    own: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]
    paths: PeftPaths


def as_filed(modules: Sequence[Named], layers: Layers, name: str, config: LoRAConfig) -> FileLayout:
    """Return an adapter as PEFT has it.

    Args:
        modules: All modules of the injected model.
        layers: Its adapted layers.
        name: The adapter.
        config: Its configuration.

    Raises:
        AdapterError: Two weights would lie in one place of the file.
    """
    paths = paths_of_layers(modules, layers, config.variant == "lora")
    firsts = {module: names[0] for module, names in modules}
    filed = FileLayout(config, {}, {}, {}, {}, {}, paths)
    settings: dict[str, tuple[int, float]] = {}
    patterned = matching_values(config.alpha_pattern, layers)
    compact = _is_too_large(layers, name)
    for path, (layer, lora) in layers.items():
        place, kind, own = paths.place(layer, firsts[layer], lora.parameter), lora.kind_of(name), _kind_of_all(lora)
        if place.path in filed.tensors:
            raise AdapterError(
                f'"{path}" and another weight of its module would lie in one place of a file in PEFT\'s format. Save '
                "adapters of them one by one."
            )
        tensors = {key: tensor.detach() for key, tensor in lora.tensors(name).items()}
        # An adapter whose start is taken off the base is one of twice the rank over the base as it is.
        doubled = 2 if "A0" in tensors else 1
        tensors = in_one_pair(tensors) if doubled == 2 else tensors
        shared = {one.name for one in lora.variant_of(name).shared}
        filed.shared.update({key: tensor for key, tensor in tensors.items() if key in shared})
        A, B = _cut(tensors["A"], tensors["B"], kind, layer) if shared else (tensors["A"], tensors["B"])
        # PEFT has no slices: an ordinary adapter of the summed rank is the same function.
        blocks = block_form(B, kind.slices, own.dims(layer)[1]) if kind.slices else B
        form = form_of(own, compact and growth_of(layer, A) > 1, place.bare)
        filed.tensors[place.path] = pair = form.write(own, layer, A, blocks)
        filed.key_ends[place.path] = form.keys
        r = pair[0].shape[0] // own.stack(layer)
        growth = r * kind.stack(layer) // A.shape[0]
        values = r, patterned.get(path, config.alpha) * _alpha_factor(config, growth * doubled)
        # PEFT has one r and one alpha for all of an attention; where they differ only Rankwise reads the file.
        called = place.name if settings.setdefault(place.name, values) == values else place.path
        settings[called] = values
        filed.setting_names[place.path] = PeftName(called, place.bare, r)
        declared = [one for one in lora.variant_of(name).tensors if one.key and not one.shared]
        if declared:
            held = {one.name: tensors[one.name] for one in declared}
            filed.own[place.path] = {
                one.name: held[one.name].view(one.filed(layer, tuple(held[one.name].shape))) for one in declared
            }
    alphas = {called: alpha for called, (_, alpha) in settings.items()}
    if INITS[config.init].moves:
        r, alpha = 2 * config.r, config.alpha * _alpha_factor(config, 2)
        config = replace(config, r=r, alpha=alpha, rank_pattern={}, init="kaiming")
    return replace(filed, config=replace(config, alpha_pattern=pinned(alphas, config.alpha)))


def _kind_of_all(lora: LoRA) -> LayerType:
    """Return how the weight is seen by an adapter that isn't on slices of it."""
    return parameter_type(lora.parameter) if lora.is_parameter else lora.layer_type


def _cut(A: Tensor, B: Tensor, kind: LayerType, layer: nn.Module) -> Pair:
    """The part of an A and B that all layers share which belongs to one of them."""
    d_in, d_out = kind.dims(layer)
    return A[:, :d_in], B[:d_out]


def _is_too_large(layers: Layers, name: str) -> bool:
    """Tell whether PEFT's form would be too large a file, and warn that PEFT can't read this one then."""
    matrices = [(layer, lora.parameters_of(name)["A"]) for layer, lora in layers.values()]
    grown = [(A.numel(), growth_of(layer, A)) for layer, A in matrices]
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


def _alpha_factor(config: LoRAConfig, growth: int) -> float:
    """By what alpha grows with r if the scale is to stay: growth, or its root for the rank-stabilised scale."""
    return growth / config.scale(r=growth, alpha=growth)


# Reading


@dataclass(frozen=True)
class PairTarget:
    """The weight of a model that a pair of tensors in a file belongs to.

    Args:
        weight: The weight.
        place: Where PEFT has it.
    """

    weight: Weight
    place: PeftLocation

    @functools.cached_property
    def blocked(self) -> str:
        """Why no adapter can act here, or an empty string."""
        kind, module = self.weight.layer_type, self.weight.module
        if kind is not None and kind.name == "Parameter":
            return ""
        if self.place.bare and kind is not None and not kind.matrix:
            return "its weight is no matrix, and named in target_parameters, so PEFT has it as a stack of matrices"
        return obstacle(module)


def settings_names(weights: Mapping[str, PairTarget], pairs: Mapping[str, Pair]) -> dict[str, tuple[str, int]]:
    """Return what the settings call each pair whose A a weight can have, and how many matrices the weight is."""
    types = {path: found.weight.layer_type for path, found in weights.items() if not found.blocked}
    stacks = {path: kind.stack(weights[path].weight.module) for path, kind in types.items() if kind is not None}
    return {path: (weights[path].place.name, n) for path, n in stacks.items() if pairs[path][0].shape[0] % n == 0}


def weights_of_file(modules: Sequence[Named], fields: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, PairTarget]:
    """Find the weights that a file's pairs of tensors belong to.

    Args:
        modules: All modules of the base.
        fields: The file's settings.
        pairs: PEFT's paths of the pairs.

    Returns:
        PEFT's path -> weight; paths that the model lacks are left out.
    """
    paths = paths_of_file(modules, fields.get("target_parameters") or [])
    filed: dict[str, PairTarget] = {}
    plain: dict[str, PairTarget] = {}
    # Layers last: where a parameter and a layer have one path, the layer is meant.
    for found in (other_parameters(modules), layers_and_owned(modules)):
        for weight in found:
            is_own = weight.layer_type is not None and weight.layer_type.name == "Parameter"
            for name in weight.names:
                place = paths.place(weight.module, name.rpartition(".")[0] if is_own else name, weight.parameter)
                reachable = place.bare or not is_own or weight.parameter == IN_PROJ
                if weight.layer_type is not None and reachable:
                    filed[place.path] = PairTarget(weight, place)
                if not is_own and (weight.layer_type is None or place.path != name):
                    plain[name] = PairTarget(weight, PeftLocation(name, name, False))
    return {path: found for path in pairs if (found := filed.get(path) or plain.get(path)) is not None}


def targets_of_file(
    model: nn.Module,
    modules: Sequence[Named],
    weights: Mapping[str, PairTarget],
    config: LoRAConfig,
    tensors: Mapping[str, Pair],
    untie: bool,
    findings: Findings,
) -> tuple[list[Target], dict[str, Pair], dict[str, str]]:
    """Find the weight of every pair of tensors that fits one.

    Args:
        model: The base.
        modules: All its modules.
        weights: PEFT's path -> weight.
        config: The file's configuration.
        tensors: PEFT's path -> A and B as PEFT shapes them.
        untie: Whether layers that share their weight each get a copy.
        findings: Takes a pair that has no place, or doesn't fit it.

    Returns:
        The targets, A and B as matrices by the targets' names, and PEFT's paths by these.
    """
    alphas = matching_values(config.alpha_pattern, tensors)
    targets: dict[nn.Module, dict[str, Target]] = {}
    converted: dict[str, Pair] = {}
    paths: dict[str, str] = {}
    known = [name for _, names in modules for name in names]
    for path, filed in tensors.items():
        found = weights.get(path)
        if found is None:
            findings.add(
                f'The adapter has tensors for "{path}", which the model lacks.{suggest(path, known)} '
                "Was it trained on another model?"
            )
            continue
        weight = found.weight
        kind = None if found.blocked or not VARIANTS[config.variant].shared else weight.layer_type
        A, B = filed if kind is None else _cut(*filed, kind, weight.module)
        others = targets.setdefault(weight.module, {})
        if weight.parameter in others:
            findings.add(
                f'The adapter has tensors for "{others[weight.parameter].name}" and for "{path}", which are one module '
                "here."
            )
            continue
        target = _target(model, found, path, (A, B), config, alphas.get(path, config.alpha), findings)
        if target is None:
            continue
        others[weight.parameter] = target
        kind, module = target.layer_type, target.module
        form = form_of(kind, is_compact(module, A), found.place.bare)
        converted[target.name], paths[target.name] = form.read(kind, module, A, B), path
    joined = [target for others in targets.values() for target in others.values()]
    if VARIANTS[config.variant].transposes or untie:
        joined = _joined(
            model, modules, {w.weight.names[0]: w.weight for w in weights.values()}, joined, converted, untie
        )
    return joined, converted, paths


def _target(
    model: nn.Module,
    found: PairTarget,
    path: str,
    tensors: Pair,
    config: LoRAConfig,
    filed_alpha: float,
    findings: Findings,
) -> Target | None:
    weight, bare = found.weight, found.place.bare
    module, kind, r = weight.module, weight.layer_type, tensors[0].shape[0]
    if kind is None or found.blocked:
        findings.add(f'The adapter has tensors for "{path}", a {type(module).__name__} here: {found.blocked}.')
        return None
    form = form_of(kind, is_compact(module, tensors[0]), bare)
    for place, (letter, tensor, needed) in enumerate(zip("AB", tensors, form.shapes(kind, module, r), strict=True)):
        if tensor.shape != needed or r % kind.stack(module):
            rank = "r" if kind.stack(module) == 1 else f"{kind.stack(module)} r"
            text = ", ".join(rank if n == place else str(size) for n, size in enumerate(needed))
            findings.add(
                f'lora_{letter} of "{path}" has shape {tuple(tensor.shape)}; the base layer needs ({text}). '
                + _cause(kind, tensor, needed)
            )
            return None
    own_r = form.read(kind, module, *tensors)[0].shape[0] // kind.stack(module)
    growth = r // kind.stack(module) // own_r
    alpha = filed_alpha / _alpha_factor(config, growth)
    d_in, d_out = kind.dims(module)
    return Target(
        name=weight.names[0],
        module=module,
        layer_type=kind,
        d_in=d_in,
        d_out=d_out,
        r=own_r,
        alpha=alpha,
        scale=config.scale(own_r, alpha),
        aliases=tuple(weight.names[1:]),
        parameter=weight.parameter,
        reader=reader_of(model, weight),
        variant=form_name(config, kind),
    )


def own_of_file(
    targets: Iterable[Target],
    paths: Mapping[str, str],
    own: Mapping[str, Mapping[str, Tensor]],
    findings: Findings,
) -> dict[str, dict[str, Tensor]]:
    """Return what the variant of a file has in addition to A and B by the targets' names, without those that don't fit.

    Args:
        targets: The targets.
        paths: Their names -> PEFT's paths.
        own: PEFT's path -> tensors by name.
        findings: Takes what doesn't fit.
    """
    fitting: dict[str, dict[str, Tensor]] = {}
    for target in targets:
        path, found = paths[target.name], dict[str, Tensor]()
        for one in FORMS[target.variant].tensors:
            if not one.key or one.shared:
                continue
            tensor, shape = own[path][one.name], one.shape(target.sizes)
            needed = one.filed(target.module, shape)
            if tuple(tensor.shape) != needed or not tensor.is_floating_point():
                findings.add(
                    f'The {one.name} of "{path}" has shape {tuple(tensor.shape)} and type {tensor.dtype}; the base '
                    f"layer needs {needed} floating-point numbers. Was it trained on another model?"
                )
                break
            found[one.name] = tensor.reshape(shape)
        else:
            fitting[target.name] = found
    return fitting


def _cause(kind: LayerType, tensor: Tensor, needed: tuple[int, ...]) -> str:
    """Guess why shapes differ."""
    if kind.reads_indices and tensor.ndim == 2 and tensor.shape[0] == needed[0] and tensor.shape[1] > needed[1]:
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
