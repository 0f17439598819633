"""From a model to an adapter's folder, and from a folder onto a model."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import AdapterFileError, TargetError, suggest
from rankwise.files.folder import key_of, read_whole, write_adapter
from rankwise.files.layer_tensors import form_of
from rankwise.files.peft_config import CONFIG_FILE
from rankwise.lora.adapter import LoRA, layers_with
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, attach, check_new_name, collector_paused
from rankwise.lora.layer_types import layer_type_of, obstacle
from rankwise.lora.targets import (
    ALL_LINEAR,
    Patterns,
    Target,
    Targets,
    matching_values,
    named_once,
    pinned,
)
from rankwise.lora.ties import flip, sharers, tied_to


def save_adapter(
    model: nn.Module, directory: str | os.PathLike[str], name: str = "default", base_name: str | None = None
) -> Path:
    """Save one adapter of a model as a folder that Rankwise and PEFT read.

    An interrupted save leaves the old adapter or none, never a mixture. Other files in the folder stay.

    Args:
        model: An injected model.
        directory: The folder; made if need be.
        name: Which adapter.
        base_name: What the base is called (a path or hub name), for whoever loads the adapter.

    Returns:
        The folder.

    Raises:
        AdapterError: The model has no such adapter.
        OutputError: The folder can't be written.

    Examples:
        >>> import rankwise, tempfile
        >>> layer = nn.Sequential(nn.Linear(4, 2))
        >>> _ = rankwise.inject(layer, rankwise.LoRAConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in save_adapter(layer, folder).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    layers = layers_with(model, name)
    config = next(iter(layers.values()))[1].configs[name]
    config, tensors = _as_filed(layers, name, config)
    return write_adapter(
        directory,
        config,
        tensors,
        base_name=base_name,
        model_names=[paths[0] for _, paths in named_once(model)],
        fan_in_fan_out=all(lora.layer_type.name == "Conv1D" for _, lora in layers.values()),
        key_ends={path: form_of(layer).keys for path, (layer, _) in layers.items()},
    )


def _as_filed(
    layers: Mapping[str, tuple[nn.Module, LoRA]], name: str, config: LoRAConfig
) -> tuple[LoRAConfig, dict[str, tuple[Tensor, Tensor]]]:
    """Return A and B of every layer as PEFT shapes them, and alphas that keep the scales where that changes r."""
    tensors: dict[str, tuple[Tensor, Tensor]] = {}
    alphas: dict[str, float] = {}
    patterned = matching_values(config.alpha_pattern, layers)
    for path, (layer, lora) in layers.items():
        A, B = (tensor.detach() for tensor in lora.pair(name))
        tensors[path] = form_of(layer).write(layer, A, B)
        growth = tensors[path][0].shape[0] // A.shape[0]
        alphas[path] = patterned.get(path, config.alpha) * _alpha_factor(config, growth)
    return replace(config, alpha_pattern=pinned(alphas, config.alpha)), tensors


def _alpha_factor(config: LoRAConfig, growth: int) -> float:
    """By what alpha grows with r if the scale is to stay: growth, or its root for the rank-stabilised scale."""
    return growth / config.scale(r=growth, alpha=growth)


def load_adapter(
    model: nn.Module, directory: str | os.PathLike[str], name: str = "default", *, untie: bool = False
) -> Report:
    """Attach a saved adapter to a model, as `inject` attaches a fresh one.

    Args:
        model: The base the adapter was trained on.
        directory: A folder written by `save_adapter` or by PEFT.
        name: What the adapter is to be called in this model.
        untie: Whether modules that share their weight each get a copy. Without it a file that has one adapter for
            the weight, under every name, loads as one; any other loads too, but can't be merged.

    Returns:
        The report of `inject`.

    Raises:
        AdapterFileError: The file is damaged, of an unsupported kind, or doesn't fit the model; the model is
            then untouched.
        AdapterError: The name is taken.

    Examples:
        >>> import rankwise, tempfile
        >>> model, again = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2))
        >>> _ = rankwise.inject(model, rankwise.LoRAConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_adapter(again, save_adapter(model, folder)).trainable_parameters
        6
    """
    with collector_paused():
        check_new_name(model, name)
        fields, config, tensors = read_whole(Path(directory))
        modules = named_once(model)
        targets, converted = _targets_of_file(modules, config, tensors)
        _refuse_missing(modules, fields, tensors)
        return attach(model, Targets(_joined(modules, targets, converted, untie), []), converted, config, name)


def _targets_of_file(
    modules: list[tuple[nn.Module, list[str]]], config: LoRAConfig, tensors: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[list[Target], dict[str, tuple[Tensor, Tensor]]]:
    """Find the module of every pair of tensors, which must fit it, and return the pairs as matrices."""
    by_name = {name: (module, names) for module, names in modules for name in names}
    alphas = matching_values(config.alpha_pattern, tensors)
    targets: dict[nn.Module, Target] = {}
    converted: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (A, B) in tensors.items():
        module, names = by_name.get(name, (None, []))
        if module is None:
            raise AdapterFileError(
                f'The adapter has tensors for "{name}", which the model lacks.{suggest(name, by_name)} '
                "Was it trained on another model?"
            )
        row = layer_type_of(module)
        if row is None or obstacle(module):
            raise AdapterFileError(
                f'The adapter has tensors for "{name}", a {type(module).__name__} here: {obstacle(module)}.'
            )
        form, r = form_of(module), A.shape[0]
        for place, (letter, tensor, needed) in enumerate(zip("AB", (A, B), form.shapes(module, r), strict=True)):
            if tensor.shape != needed:
                text = ", ".join("r" if n == place else str(size) for n, size in enumerate(needed))
                raise AdapterFileError(
                    f'lora_{letter} of "{name}" has shape {tuple(tensor.shape)}; the base layer needs ({text}). '
                    "Was it trained on another model?"
                )
        converted[name] = form.read(module, A, B)
        if module in targets:
            raise AdapterFileError(
                f'The adapter has tensors for "{targets[module].name}" and for "{name}", which are one module here.'
            )
        growth = r // converted[name][0].shape[0]
        r, alpha = r // growth, alphas.get(name, config.alpha) / _alpha_factor(config, growth)
        d_in, d_out = row.dims(module)
        others = tuple(other for other in names if other != name)
        targets[module] = Target(name, module, row, d_in, d_out, r, alpha, config.scale(r, alpha), others)
    return [targets[module] for module, _ in modules if module in targets], converted


def _joined(
    modules: list[tuple[nn.Module, list[str]]],
    targets: list[Target],
    tensors: Mapping[str, tuple[Tensor, Tensor]],
    untie: bool,
) -> list[Target]:
    """Make one target of those that share a weight and have the same A and B for it."""
    by_module = {target.module: target for target in targets}
    for users in sharers(modules).values():
        found = [by_module[module] for module, _ in users if module in by_module]
        if untie:
            by_module |= {target.module: replace(target, untie=True) for target in found}
        elif len(found) == len(users):
            first = found[0]
            ties = tied_to(first.module, users)
            if all(
                target.scale == first.scale and _same(tensors[first.name], tensors[target.name], tie.flipped)
                for target, tie in zip(found[1:], ties, strict=True)
            ):
                by_module[first.module] = replace(first, ties=ties)
                for tie in ties:
                    del by_module[tie.module]
    return list(by_module.values())


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], flipped: bool) -> bool:
    return all(map(torch.equal, one, flip(*other) if flipped else other))


def _refuse_missing(
    modules: list[tuple[nn.Module, list[str]]], fields: Mapping[str, Any], tensors: Mapping[str, object]
) -> None:
    """Raise where the configuration targets a layer of the model that the file has no tensors for."""
    try:
        wanted, excluded = (
            Patterns([f"re:{patterns}"] if isinstance(patterns, str) else patterns or [])
            for patterns in (fields.get("target_modules"), fields.get("exclude_modules"))
        )
    except TargetError as error:
        raise AdapterFileError(f"A pattern of {CONFIG_FILE} can't be used: {error}") from error
    if fields.get("target_modules") == ALL_LINEAR:
        return
    for module, names in modules:
        missing = wanted.matching(names, module) and not excluded.matching(names, module) and not obstacle(module)
        if missing and not any(name in tensors for name in names):
            key = key_of(names[0], form_of(module).keys[0])
            raise AdapterFileError(
                f'The adapter has no tensor "{key}", but its target_modules take in "{names[0]}" of this model. Was it '
                "trained on another model, or is the file incomplete?"
            )
