"""From a model to an adapter's folder, and from a folder onto a model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.errors import AdapterFileError, TargetError
from rankwise.files.folder import LINEAR_KEYS, key_of, read_whole, write_adapter
from rankwise.files.layer_tensors import form_of
from rankwise.files.peft_config import CONFIG_FILE
from rankwise.files.placing import as_filed, key_ends, targets_of_file
from rankwise.lora.adapter import layers_with
from rankwise.lora.inject import Report, attach, check_new_name, collector_paused
from rankwise.lora.layer_types import layer_type_of, obstacle
from rankwise.lora.modules import named_once
from rankwise.lora.patterns import Patterns
from rankwise.lora.targets import ALL_LINEAR, Targets


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
    config, tensors = as_filed(model, layers, name, config)
    return write_adapter(
        directory,
        config,
        tensors,
        base_name=base_name,
        model_names=[paths[0] for _, paths in named_once(model)],
        fan_in_fan_out=all(lora.layer_type.name == "Conv1D" for _, lora in layers.values()),
        key_ends=key_ends(model, layers),
    )


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
        targets, converted = targets_of_file(model, config, tensors, untie)
        _refuse_missing(modules, fields, tensors)
        return attach(model, Targets(targets, []), converted, config, name)


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
            row = layer_type_of(module)
            key = key_of(names[0], form_of(row).keys[0] if row else LINEAR_KEYS[0])
            raise AdapterFileError(
                f'The adapter has no tensor "{key}", but its target_modules take in "{names[0]}" of this model. Was it '
                "trained on another model, or is the file incomplete?"
            )
