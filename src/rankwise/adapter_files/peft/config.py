"""`adapter_config.json` of PEFT, both ways: our settings to its fields and back."""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.adapter_files.base.inits import BASE_MOVES, BASE_STAYS, value_to_write
from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.peft.regexes import compiled
from rankwise.errors import AdapterFileError
from rankwise.lora.config import BIASES, LARGEST, LoRAConfig
from rankwise.lora.targets.patterns import matching_values, pattern_list, pinned
from rankwise.lora.variants import VARIANTS
from rankwise.writing import read_regular

CONFIG_FILE = "adapter_config.json"

SCALING_OF_RSLORA = {False: "alpha/r", True: "alpha/sqrt(r)"}

_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "peft_type": tuple(dict.fromkeys(variant.peft.type for variant in VARIANTS.values())),
    # Others move the base's weights by what the file doesn't hold, so A and B alone don't give the model back.
    "init_lora_weights": (*BASE_STAYS, *BASE_MOVES),
    **dict.fromkeys(("use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(
        (
            "layer_replication",
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
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
"""Fields that change nothing in a trained adapter's function."""

_LARGEST = 1 << 26
"""Bytes: no settings are longer, and reading what is would only fill the memory."""


def _is_number(value: object) -> bool:
    # The comparison keeps out NaN, infinities (Python's JSON has both) and whole numbers no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_names(value: object) -> bool:
    return value is None or isinstance(value, str) or _is_list_of_names(value)


def _are_indices(value: object) -> bool:
    indices = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(index, int) and not isinstance(index, bool) for index in indices)


def _are_tokens(value: object) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [[] if value is None else value]
    return all(isinstance(tokens, list) and _are_indices(tokens) for tokens in lists)


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number of at least 1"),
    "lora_alpha": (_is_number, "a finite number that float32 holds"),
    "lora_dropout": (_is_number, "a finite number"),
    **{
        variant.peft.switch: (lambda value: value is None or isinstance(value, bool), "true or false")
        for variant in VARIANTS.values()
        if variant.peft.switch
    },
    "lora_bias": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "target_modules": (_is_names, "a list of names or one regular expression"),
    "exclude_modules": (_is_names, "a list of names or one regular expression"),
    "modules_to_save": (lambda value: value is None or _is_list_of_names(value), "a list of names"),
    "target_parameters": (lambda value: value is None or _is_list_of_names(value), "a list of names"),
    "layers_pattern": (_is_names, "a list of names or one name"),
    "layers_to_transform": (_are_indices, "a whole number or a list of them"),
    "trainable_token_indices": (_are_tokens, "a list of whole numbers, or an object of such lists"),
    "bias": (lambda value: value is None or value in BIASES, " or ".join(f'"{bias}"' for bias in BIASES)),
    "rank_pattern": (
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_rank, value.values()))),
        "an object of whole numbers",
    ),
    "alpha_pattern": (
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))),
        "an object of finite numbers that float32 holds",
    ),
}
"""Field -> (is it of the right type?, what is needed)."""

_OF_VARIANTS = {name for variant in VARIANTS.values() for name in (variant.peft.switch, *variant.peft.fields)} - {""}
"""Fields of single variants."""


def variant_of(fields: Mapping[str, Any]) -> str:
    """Return the name of the variant that a file's settings are of.

    Examples:
        >>> variant_of({"peft_type": "LORA"}), variant_of({"peft_type": "LORA", "use_dora": True})
        ('lora', 'dora')
    """
    forms = {name: variant.peft for name, variant in VARIANTS.items() if variant.peft.type == fields.get("peft_type")}
    switched = [name for name, form in forms.items() if form.switch and fields.get(form.switch)]
    return next(iter(switched), next((name for name, form in forms.items() if not form.switch), "lora"))


# Writing


@dataclass(frozen=True)
class PeftName:
    """A weight in the settings.

    Args:
        name: What targets and patterns call it.
        bare: Whether it is one of `target_parameters`; else it is one of `target_modules`.
        r: Its rank.
    """

    name: str
    bare: bool
    r: int


def fields_of(
    config: LoRAConfig, named: Iterable[PeftName], tokens: Mapping[str, Sequence[int]], model_names: Iterable[str]
) -> dict[str, Any]:
    """Return the JSON of an adapter, without the fields that only the caller knows."""
    ranks = {it.name: it.r for it in named}
    names, modules = sorted(ranks), sorted({it.name for it in named if not it.bare})
    parameters = sorted(it.name for it in named if it.bare)
    alphas = {name: _without_fraction(config.alpha) for name in names}
    alphas |= {name: _without_fraction(alpha) for name, alpha in matching_values(config.alpha_pattern, names).items()}
    reached = matching_values(dict.fromkeys(modules, True), model_names)
    foreign = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_pattern": None,
        "revision": None,
        "task_type": None,
    }
    rows = {path: list(chosen) for path, chosen in tokens.items()} or None
    form = VARIANTS[config.variant].peft
    written = {
        **foreign,
        **config.extra,
        "init_lora_weights": value_to_write(config.extra),
        # Readers from before it was thought of don't know the field.
        **({"trainable_token_indices": rows} if rows or "trainable_token_indices" in config.extra else {}),
        "alpha_pattern": as_peft_pattern(pinned(alphas, _without_fraction(config.alpha))),
        "bias": config.bias,
        "exclude_modules": None,
        "inference_mode": True,
        "layers_to_transform": None,
        "lora_alpha": _without_fraction(config.alpha),
        "lora_bias": False,
        "lora_dropout": 0.0 if parameters else config.dropout,
        "modules_to_save": sorted(map(str, pattern_list(config.modules_to_save))) or None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": as_peft_pattern(pinned(ranks, config.r)),
        "target_modules": modules if reached.keys() <= {*modules} else "|".join(map(re.escape, modules)),
        "target_parameters": parameters or None,
        **{other.peft.switch: other.peft is form for other in VARIANTS.values() if other.peft.switch},
        "use_rslora": config.scaling == SCALING_OF_RSLORA[True],
    }
    return written if form.type == "LORA" else form.as_peft(written, config)


_WRITTEN = {
    *(
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
    ),
    *("lora_bias", "lora_dropout", "modules_to_save", "peft_type", "r", "rank_pattern", "runtime_config"),
    *("target_modules", "target_parameters", "use_rslora"),
    *_OF_VARIANTS,
}
"""Fields that are ours to write, whatever a file said; all others are kept as they came."""


def foreign_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that mean nothing here and are written back as they came.

    Examples:
        >>> foreign_fields({"r": 8, "task_type": "CAUSAL_LM", "brand_new": 1})
        {'task_type': 'CAUSAL_LM', 'brand_new': 1}
    """
    return {field: value for field, value in fields.items() if field not in _WRITTEN}


def _without_fraction(number: int | float) -> int | float:
    """Return 32 for 32.0: readers that expect a whole alpha get one where it is."""
    return int(number) if float(number).is_integer() else number


def as_peft_pattern(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Spell our patterns as PEFT's: regular expressions on the end of a path, "^" where it must be all of it."""
    return {re.sub("^re:", "^", key): value for key, value in pattern.items()}


# Reading


def read_fields(path: Path) -> tuple[dict[str, Any], str]:
    """Read the settings of an adapter; return its fields and its text.

    Raises:
        AdapterFileError: The file is missing or damaged, a field has a wrong type, or one changes the maths in
            a way that isn't supported.
    """
    fields, text = read_json(path)
    fields = VARIANTS[variant_of(fields)].peft.as_lora(fields)
    check_fields(path, fields)
    return fields, text


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """Read a JSON object; return its fields, as they are, and its text.

    Raises:
        AdapterFileError: The file is missing or damaged.
    """
    folder = path.parent
    try:
        if path.stat().st_size > _LARGEST:
            raise AdapterFileError(
                f"{path} has {path.stat().st_size:,} bytes; no settings need more than {_LARGEST:,}."
            )
        text = read_regular(path).decode("utf-8")
        fields = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{path.name}"))
        hint = f" There is one in {inside[0]}." if inside else ""
        raise AdapterFileError(f"{folder} has no {CONFIG_FILE}; an adapter is a folder with one.{hint}") from error
    except OSError as error:
        raise AdapterFileError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, text that is no JSON, lists in lists
        raise AdapterFileError(f"{path} is damaged: {error}.") from error
    if not isinstance(fields, dict):
        raise AdapterFileError(f"{path} holds a JSON {type(fields).__name__}; an object is needed.")
    return fields, text


def check_fields(where: object, fields: Mapping[str, Any]) -> None:
    """Raise where a field has a wrong type or changes the maths.

    Raises:
        AdapterFileError: In these cases.
    """
    if "peft_type" not in fields:
        types = " or ".join(f'"{name}"' for name in _UNSUPPORTED["peft_type"])
        raise AdapterFileError(f'{where} has no "peft_type"; it must be {types}.')
    for field, neutral in _UNSUPPORTED.items():
        if field in fields and not any(fields[field] is value or fields[field] == value for value in neutral):
            raise AdapterFileError(
                f"{where} sets {field} = {json.dumps(fields[field])}, which changes the adapter's function and isn't "
                f"supported; {json.dumps(neutral[0])} is."
            )
    for field, (fits, needed) in _TYPES.items():
        if field in fields and not fits(fields[field]):
            raise AdapterFileError(f"{where} sets {field} = {json.dumps(fields[field])}; {needed} is needed.")
    for field in ("target_modules", "exclude_modules"):
        if isinstance(fields.get(field), str):
            compiled(fields[field], fields[field])


def check_unknown_fields(where: object, fields: Mapping[str, Any], findings: Findings) -> None:
    """Warn of fields that a newer PEFT may have added; find those whose name says that they change the maths."""
    unknown = sorted(fields.keys() - _UNSUPPORTED.keys() - _WITHOUT_EFFECT - _TYPES.keys() - _OF_VARIANTS)
    for field in unknown:
        # By PEFT's habit a variant is switched on by `use_...`, or by its own settings.
        if fields[field] and (field.startswith("use_") or field.endswith("_config")):
            findings.add(
                f"{where} sets {field} = {json.dumps(fields[field])}. It isn't known here and its name says that it "
                "changes the adapter's function. Pass strict=False only if you know that it doesn't."
            )
    if unknown:
        warnings.warn(
            f"{where} has fields that are not known here and pass unused: {', '.join(unknown)}. A newer PEFT may have "
            "written it; check the adapter's outputs.",
            stacklevel=4,
        )


def peft_values(pattern: Mapping[str, Any] | None, default: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return each module's value as PEFT finds it: the first key that matches the end of its path."""
    keys = [(compiled(rf"(.*\.)?({key})$", key), value) for key, value in (pattern or {}).items()]
    # One after the other, as PEFT does it: a dot in a key is any character, so keys can't be looked up.
    return {name: next((value for key, value in keys if key.match(name)), default) for name in names}
