"""Settings of PEFT -> `LoRAConfig`, for a fresh adapter: `LoRAConfig.from_peft` leads here."""

import enum
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapter_files.base.inits import FRESH
from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.peft.base_facts import HEADS
from rankwise.adapter_files.peft.config import (
    CONFIG_FILE,
    SCALING_OF_RSLORA,
    check_fields,
    check_unknown_fields,
    foreign_fields,
    read_json,
    variant_of,
)
from rankwise.adapter_files.peft.targets import PeftTargets
from rankwise.errors import ConfigError
from rankwise.lora.config import LoRAConfig, TargetPattern
from rankwise.lora.targets.patterns import pattern_list
from rankwise.lora.variants import VARIANTS


def config_from_peft(source: Any, *, strict: bool = True) -> LoRAConfig:
    """Return PEFT's settings as ours; see `LoRAConfig.from_peft`."""
    where, fields = _fields_of(source)
    variant = variant_of(fields)
    fields = VARIANTS[variant].peft.as_lora(fields)
    # With which initialisation a fresh adapter starts is a choice, whatever it does to the base of a file.
    check_fields(where, {field: value for field, value in fields.items() if field != "init_lora_weights"})
    if fields.get("lora_bias"):
        raise ConfigError(
            f"{where} sets lora_bias = true, a bias of B, which adds what a bias of the layer would. Set bias = "
            '"lora_only" instead. A file with it can be loaded.'
        )
    parameters = fields.get("target_parameters") or []
    check_unknown_fields(where, fields, Findings(strict))
    given = fields.get("init_lora_weights", True)
    init = FRESH.get(given) if given is None or isinstance(given, str | bool) else None
    if init is None:
        known = ", ".join(map(json.dumps, FRESH))
        raise ConfigError(
            f"{where} sets init_lora_weights = {json.dumps(given)}, which isn't known here; {known} are. Change it, "
            "then choose `init` of LoRAConfig."
        )
    try:
        return LoRAConfig(
            r=fields.get("r", 8),
            alpha=float(fields.get("lora_alpha", 8)),
            dropout=float(fields.get("lora_dropout", 0)),
            target_modules=_targets_of(where, fields, parameters),
            exclude_modules=_as_patterns(fields.get("exclude_modules")),
            rank_pattern=_as_ours(fields.get("rank_pattern")),
            alpha_pattern={key: float(value) for key, value in _as_ours(fields.get("alpha_pattern")).items()},
            init=init,
            scaling=SCALING_OF_RSLORA[bool(fields.get("use_rslora"))],
            modules_to_save=_saved_of(fields),
            bias=fields.get("bias") or "none",
            variant=variant,
            trainable_tokens=fields.get("trainable_token_indices") or (),
            extra=foreign_fields(fields),
            **VARIANTS[variant].peft.read(fields),
        )
    except ConfigError as error:
        raise ConfigError(f"{where} can't be used: {error}") from error


def _fields_of(source: Any) -> tuple[object, dict[str, Any]]:
    """Return what the source is called in messages, and its fields as JSON has them."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        path = path / CONFIG_FILE if path.is_dir() or path.suffix != ".json" else path
        return path, read_json(path)[0]
    to_dict = getattr(source, "to_dict", None)
    given = to_dict() if callable(to_dict) else source
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"from_peft got a {type(source).__name__}; a LoraConfig of peft, a dictionary of its fields, or the "
            "folder of an adapter is needed."
        )
    fields = {str(field): _as_json(value) for field, value in given.items()}
    # peft sets it from the model when it attaches; a dictionary written by hand need not say it.
    return f"The {type(source).__name__}", {"peft_type": "LORA", **fields}


def _as_json(value: Any) -> Any:
    """Return a setting as a file would have it: sets sorted, enumerations by their value."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset | tuple):
        items = [_as_json(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value


def _targets_of(where: object, fields: Mapping[str, Any], parameters: list[str]) -> Any:
    wanted, layers = fields.get("target_modules"), fields.get("layers_to_transform")
    if not wanted and not parameters:
        raise ConfigError(
            f"{where} has no target_modules; peft then chooses by the name of the model's architecture. Name the "
            'modules, or set "all-linear".'
        )
    # PEFT may call a layer by its weight.
    own = [_Weights(name) if name.rpartition(".")[2] == "weight" else name for name in parameters]
    if isinstance(wanted, list) and layers not in (None, []):
        return (PeftTargets(fields), *own)
    return (*pattern_list(_as_patterns(wanted)), *own)


@dataclass(frozen=True)
class SavedAsInPeft:
    """The modules that entries of peft's `modules_to_save` mean: those whose path ends in one, also inside a name.

    Args:
        names: The entries.
        optional: Whether it is no error if no module is meant.
    """

    names: tuple[str, ...]
    optional: bool = False

    def __call__(self, name: str, module: nn.Module) -> bool:
        """Tell whether the settings name this module."""
        return name.endswith(self.names)

    def __str__(self) -> str:
        """The entries."""
        return ", ".join(self.names)


def _saved_of(fields: Mapping[str, Any]) -> tuple[SavedAsInPeft, ...]:
    """Return what `modules_to_save` means, and the heads that peft adds for a task, which a model may lack."""
    names = tuple(fields.get("modules_to_save") or ())
    heads = HEADS.get(fields.get("task_type") or "", ())
    own = tuple(SavedAsInPeft((name,)) for name in names if name not in heads)
    return (*own, SavedAsInPeft(heads, optional=True)) if heads else own


@dataclass(frozen=True)
class _Weights:
    """The layers, and parameters called `weight`, that an entry of `target_parameters` means: a target pattern."""

    name: str

    def __call__(self, name: str, module: nn.Module) -> bool:
        """Tell whether the settings name this path."""
        path = f".{name}" if name.rpartition(".")[2] == "weight" else f".{name}.weight"
        return path.endswith(f".{self.name}")


def _as_patterns(names: str | list[str] | None) -> TargetPattern | tuple[str, ...]:
    """Return PEFT's names as our patterns: a list means names or their ends, a string one regular expression.

    Examples:
        >>> _as_patterns(["q_proj"]), _as_patterns("all-linear"), _as_patterns(".*q_proj")
        (('q_proj',), 'all-linear', 're:.*q_proj')
    """
    if isinstance(names, str):
        return names if names == "all-linear" else f"re:{names}"
    return tuple(sorted({*(names or ())}))


def _as_ours(pattern: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return PEFT's keys, regular expressions on the end of a path, as our patterns.

    Examples:
        >>> _as_ours({"q_proj": 4, "^h.0.up": 2})
        {'q_proj': 4, 're:(.*\\\\.)?(^h.0.up)': 2}
    """
    return {key if re.fullmatch(r"[\w.-]+", key) else rf"re:(.*\.)?({key})": v for key, v in (pattern or {}).items()}
