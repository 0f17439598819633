"""`adapter_config.json` of PEFT, both ways: our settings to its fields and back."""

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import AdapterFileError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.patterns import matching_values, pinned

CONFIG_FILE = "adapter_config.json"

SCALING_OF_RSLORA = {False: "alpha/r", True: "alpha/sqrt(r)"}

_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # Other inits move the base's weights, so A and B alone don't give the model back.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(
        (
            "modules_to_save",
            "layers_to_transform",
            "layer_replication",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "monteclora_config",
            "velora_config",
        ),
        (None, [], {}),
    ),
}
"""Fields that change the maths, with the values that leave it as it is; any other value is refused."""

_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
"""Fields that change nothing in a trained adapter's function."""


def _is_number(value: object) -> bool:
    # The comparison keeps out NaN, infinities (Python's JSON has both) and whole numbers no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_names(value: object) -> bool:
    return (
        value is None
        or isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    )


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number of at least 1"),
    "lora_alpha": (_is_number, "a finite number"),
    "lora_dropout": (_is_number, "a finite number"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "target_modules": (_is_names, "a list of names or one regular expression"),
    "exclude_modules": (_is_names, "a list of names or one regular expression"),
    "rank_pattern": (
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_rank, value.values()))),
        "an object of whole numbers",
    ),
    "alpha_pattern": (
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))),
        "an object of finite numbers",
    ),
}
"""Field -> (is it of the right type?, what is needed)."""


# Writing


def fields_of(config: LoRAConfig, ranks: Mapping[str, int], model_names: Iterable[str]) -> dict[str, Any]:
    """Return the JSON of an adapter, without what only the caller knows."""
    names = sorted(ranks)
    alphas = {name: _whole(config.alpha) for name in names}
    alphas |= {name: _whole(alpha) for name, alpha in matching_values(config.alpha_pattern, names).items()}
    reached = matching_values(dict.fromkeys(names, True), model_names)
    return {
        "alpha_pattern": _as_peft(pinned(alphas, _whole(config.alpha))),
        "auto_mapping": None,
        "bias": "none",
        "exclude_modules": None,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": _whole(config.alpha),
        "lora_bias": False,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": _as_peft(pinned(ranks, config.r)),
        "revision": None,
        "target_modules": names if reached.keys() <= ranks.keys() else "|".join(map(re.escape, names)),
        "task_type": None,
        "use_dora": False,
        "use_rslora": config.scaling == SCALING_OF_RSLORA[True],
    }


def _whole(number: int | float) -> int | float:
    """Return 32 for 32.0: readers that expect a whole alpha get one where it is."""
    return int(number) if float(number).is_integer() else number


def _as_peft(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Spell our patterns as PEFT's: regular expressions on the end of a path, "^" where it must be all of it."""
    return {re.sub("^re:", "^", key): value for key, value in pattern.items()}


# Reading


def read_fields(path: Path) -> dict[str, Any]:
    """Read the JSON of an adapter.

    Raises:
        AdapterFileError: The file is missing or damaged, a field has a wrong type, or one changes the maths in
            a way that isn't supported.
    """
    folder = path.parent
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{path.name}"))
        hint = f" There is one in {inside[0]}." if inside else ""
        raise AdapterFileError(f"{folder} has no {CONFIG_FILE}; an adapter is a folder with one.{hint}") from error
    except OSError as error:
        raise AdapterFileError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:  # bytes that are no text, or text that is no JSON
        raise AdapterFileError(f"{path} is damaged: {error}.") from error
    if not isinstance(fields, dict):
        raise AdapterFileError(f"{path} holds a JSON {type(fields).__name__}; an object is needed.")
    if "peft_type" not in fields:
        raise AdapterFileError(f'{path} has no "peft_type"; it must be "LORA".')
    for field, neutral in _UNSUPPORTED.items():
        if field in fields and not any(fields[field] is value or fields[field] == value for value in neutral):
            raise AdapterFileError(
                f"{path} sets {field} = {json.dumps(fields[field])}, which changes the adapter's function and isn't "
                f"supported; {json.dumps(neutral[0])} is."
            )
    for field, (fits, needed) in _TYPES.items():
        if field in fields and not fits(fields[field]):
            raise AdapterFileError(f"{path} sets {field} = {json.dumps(fields[field])}; {needed} is needed.")
    unknown = sorted(fields.keys() - _UNSUPPORTED.keys() - _WITHOUT_EFFECT - _TYPES.keys())
    if unknown:
        warnings.warn(
            f"{path} has fields that are not known here and pass unused: {', '.join(unknown)}. A newer PEFT may have "
            "written it; check the adapter's outputs.",
            stacklevel=4,
        )
    return fields


def peft_values(pattern: Mapping[str, Any] | None, default: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return each module's value as PEFT finds it: the first key that matches the end of its path."""
    try:
        keys = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in (pattern or {}).items()]
    except re.error as error:
        raise AdapterFileError(
            f'A pattern of {CONFIG_FILE} is no regular expression: "{error.pattern}", {error}.'
        ) from error
    # One after the other, as PEFT does it: a dot in a key is any character, so keys can't be looked up.
    return {name: next((value for key, value in keys if key.match(name)), default) for name in names}
