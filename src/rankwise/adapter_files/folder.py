"""An adapter on disk: `adapter_config.json` and `adapter_model.safetensors` in one folder.

Reading is strict: what PEFT passes over with a warning (a wrong prefix, tensors too many or too few) is an
error here.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapter_files.base.checksums import (
    BaseRecord,
    buffers_of,
    check_config,
    check_file,
    records_of_base,
)
from rankwise.adapter_files.base.finite import first_not_finite
from rankwise.adapter_files.base.inits import taken_off
from rankwise.adapter_files.base.processes import written_once
from rankwise.adapter_files.both_files import write_files
from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.peft.config import (
    CONFIG_FILE,
    SCALING_OF_RSLORA,
    PeftName,
    check_unknown_fields,
    fields_of,
    foreign_fields,
    peft_values,
    read_fields,
    variant_of,
)
from rankwise.adapter_files.peft.foreign_keys import KnownModel, as_usual, fields_as_usual
from rankwise.adapter_files.peft.keys import (
    BASE_LAYER,
    LINEAR_KEYS,
    TOKENS_KEY,
    Parts,
    is_pair,
    key_of,
    sorted_parts,
)
from rankwise.adapter_files.tensor_file import read_either
from rankwise.adapter_files.token_rows import tokens_of_fields
from rankwise.errors import AdapterFileError, ConfigError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.offloaded import gathered
from rankwise.lora.targets.patterns import pinned
from rankwise.lora.variants import VARIANTS


@dataclass(frozen=True, kw_only=True)
class OtherTensors:
    """A file's tensors other than A and B, and the names of its tensors.

    Args:
        replacements: Path of a parameter or buffer, by PEFT's path -> the adapter's own value. `modules_to_save`
            and `bias` of the configuration must cover it, unless it is an embedding of an enlarged vocabulary.
        own: Module path -> the variant's tensors other than A and B (DoRA's "magnitude"), as PEFT
            shapes it.
        shared: What all modules of the variant share, by name; A and B are then parts of it.
        tokens: Module path -> tokens whose rows were trained, and these rows.
        key_ends: Module path -> ends of the keys of A and B, where they aren't those of a Linear.
        setting_names: Module path -> what targets and patterns call it, where that isn't its path.
    """

    replacements: Mapping[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)
    key_ends: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    setting_names: Mapping[str, PeftName] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileBase:
    """A file's record of the base.

    Args:
        record: For the checksums that tell another base apart.
        facts: What settings say of it, where the configuration brought nothing.
        model_names: Paths of all its modules, where they are known. PEFT takes a listed path for a suffix too; where
            that would reach other modules, the targets are written as one regular expression.
        fan_in_fan_out: PEFT's word for transformers' Conv1D layers; None leaves what the configuration brought along.
    """

    record: BaseRecord = field(default_factory=BaseRecord)
    facts: Mapping[str, Any] = field(default_factory=dict)
    model_names: Iterable[str] = ()
    fan_in_fan_out: bool | None = None


def write_adapter(
    directory: str | os.PathLike[str],
    config: LoRAConfig,
    tensors: Mapping[str, tuple[Tensor, Tensor]],
    *,
    others: OtherTensors | None = None,
    base: FileBase | None = None,
    base_name: str | None = None,
    model: nn.Module | None = None,
) -> Path:
    """Write A and B of a set of modules; no model is needed.

    Args:
        directory: The folder; made if need be.
        config: Gives alpha, scaling and dropout. Ranks are those of the tensors.
        tensors: Module path -> (A of shape (r, d_in), B of shape (d_out, r)), or as PEFT shapes them for other
            layers than Linear. Types are kept.
        others: What else the file holds.
        base: What it says of the base.
        base_name: What the base is called; None leaves what the configuration brought along.
        model: What the tensors are of: where processes have a part of it each, one of them writes.

    Returns:
        The folder.

    Raises:
        AdapterFileError: A pair of tensors doesn't fit together, or there is none.
        OutputError: The folder can't be written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_adapter(folder, LoRAConfig(r=1), {"fc": (torch.ones(1, 3), torch.ones(2, 1))})
        ...     config, tensors = read_adapter(folder)
        >>> config.alpha, tensors["fc"][0]
        (32.0, tensor([[1., 1., 1.]]))
    """
    others, base = others or OtherTensors(), base or FileBase()
    # Copies: safetensors refuses tensors that share memory, as slices of a stack do.
    flat = {
        key: gathered(tensor.detach() if tensor.requires_grad else tensor)
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for key, tensor in _by_key(config.variant, tensors, others).items()
    }
    called = {name: PeftName(name, False, A.shape[0]) for name, (A, _) in tensors.items()} | dict(others.setting_names)
    chosen = {name: rows for name, (rows, _) in others.tokens.items()}
    fields = fields_of(config, [called[name] for name in tensors], chosen, base.model_names)
    fields |= {name: value for name, value in base.facts.items() if fields.get(name) is None}
    if base_name is not None:
        fields["base_model_name_or_path"] = base_name
    if base.fan_in_fan_out is not None:
        fields["fan_in_fan_out"] = base.fan_in_fan_out
    records = records_of_base(base.record)
    with written_once(model) as mine:
        return write_files(directory, fields, flat, records) if mine else Path(directory)


def _by_key(variant_name: str, tensors: Mapping[str, tuple[Tensor, Tensor]], others: OtherTensors) -> dict[str, Tensor]:
    """The tensors of a file by their keys.

    Raises:
        AdapterFileError: They don't fit together, or there are none.
    """
    variant = VARIANTS[variant_name]
    if not tensors:
        raise AdapterFileError("There are no tensors to write; an adapter has at least one module.")
    for name, (A, B) in tensors.items():
        if not is_pair(A, B):
            raise AdapterFileError(
                f'A of "{name}" has shape {tuple(A.shape)} and B {tuple(B.shape)}; (r, d_in) and (d_out, r) are needed.'
            )
    keyed = {
        key_of(name, end): tensor
        for name, pair in tensors.items()
        for end, tensor in zip(others.key_ends.get(name, LINEAR_KEYS), pair, strict=True)
    }
    ends = {one.name: one.key for one in variant.tensors if one.key and not one.shared}
    for name in {**tensors, **others.own}:
        if (found := others.own.get(name, {})).keys() != ends.keys() or name not in tensors:
            raise AdapterFileError(
                f'The variant "{variant_name}" has {", ".join(ends) or "nothing"} in addition to A and B; '
                f'"{name}" has {", ".join(found) or "nothing"}.'
            )
    if {*others.shared} != {one.name for one in variant.shared}:
        raise AdapterFileError(f'The variant is "{variant_name}"; its modules share {[*others.shared] or "nothing"}.')
    if others.shared:
        keyed = {f"base_model.{one.key}": others.shared[one.name] for one in variant.shared}
    keyed |= {key_of(name, ends[key]): t for name, found in others.own.items() for key, t in found.items()}
    keyed |= {key_of(name, TOKENS_KEY): rows for name, (_, rows) in others.tokens.items()}
    return keyed | {key_of("", name): tensor for name, tensor in others.replacements.items()}


def read_adapter(
    directory: str | os.PathLike[str], *, strict: bool = True, allow_pickle: bool = False
) -> tuple[LoRAConfig, dict[str, tuple[Tensor, Tensor]]]:
    """Read an adapter's settings and tensors; no model is needed.

    Args:
        directory: A folder written by `write_adapter` or by PEFT.
        strict: Whether what can't be used is an error; False leaves it out. A damaged file is one always.
        allow_pickle: Whether `adapter_model.bin` may be read, by the unpickler that makes tensors only.

    Returns:
        The configuration, whose targets and patterns are paths of modules, and module path -> (A, B).

    Raises:
        AdapterFileError: A file is missing, damaged or of an unsupported kind; or the adapter brings parameters of
            the base that are trained in full, which only `load_adapter` can use.

    Examples:
        >>> read_adapter("nowhere")
        Traceback (most recent call last):
        rankwise.errors.AdapterFileError: nowhere has no adapter_config.json; an adapter is a folder with one.
    """
    findings = Findings(strict)
    read = read_through(Path(directory), findings, allow_pickle)
    if read.parts.replacements:
        findings.add(
            f'{read.path} has fully trained parameters ("{next(iter(read.parts.replacements))}"), not only A and B; '
            "load_adapter puts them into a model."
        )
    if read.fields.get("target_parameters"):
        findings.add(f"{read.path} adapts parameters (target_parameters), whose form only load_adapter knows.")
    if taken_off(read.fields):
        findings.add(f"{read.settings} sets init_lora_weights: A and B stand over a base that load_adapter makes.")
    if read.parts.biases:
        findings.add(f"{read.path} has biases of B (lora_bias), which only load_adapter can use.")
    if read.parts.own:
        variant = VARIANTS[variant_of(read.fields)]
        what = " and ".join(one.name for one in variant.tensors if one.key and not one.shared)
        findings.add(f"{read.path} is of a {variant.label} adapter, whose {what} only load_adapter can use.")
    if read.parts.tokens:
        findings.add(f"{read.path} brings rows of single tokens, which only load_adapter can use.")
    return config_of(read, {name: (name, 1) for name in read.parts.pairs}, findings), read.parts.pairs


@dataclass(frozen=True)
class AdapterFile:
    """The content of a folder.

    Args:
        path: The file with the tensors.
        settings: The file with the settings.
        fields: The settings, in PEFT's words.
        flat: The tensors, by their keys.
        parts: The tensors, sorted.
        metadata: Of the tensor file, with its checksums if it is ours.
    """

    path: Path
    settings: Path
    fields: dict[str, Any]
    flat: dict[str, Tensor]
    parts: Parts
    metadata: dict[str, str]


def read_through(folder: Path, findings: Findings, allow_pickle: bool, known: KnownModel | None = None) -> AdapterFile:
    """Read a folder, with all checks that need no model.

    Args:
        folder: The folder.
        findings: Takes what can't be used.
        allow_pickle: Whether `adapter_model.bin` may be read.
        known: What is known of the model that it is read for.

    Raises:
        AdapterFileError: A file is missing, damaged or of an unsupported kind.
    """
    where = folder / CONFIG_FILE
    fields, text = read_fields(where)
    path, flat, metadata = read_either(folder, allow_pickle)
    check_file(path, flat, metadata)
    _check_finite(path, flat, findings)
    check_config(where, text, metadata, findings)
    check_unknown_fields(where, fields, findings)
    known = known or KnownModel()
    fields, flat = fields_as_usual(fields, known), as_usual(flat, known)
    buffers = buffers_of(path, metadata)
    parts = sorted_parts(path, flat, fields, findings, known.tensors, tuple(known.embeddings), buffers)
    if not parts.pairs:
        raise AdapterFileError(f"{path} holds no tensors of an adapter.")
    return AdapterFile(path, where, fields, flat, parts, metadata)


def _check_finite(path: Path, flat: Mapping[str, Tensor], findings: Findings) -> None:
    """Find a tensor with NaN or infinity, which every output would then have."""
    key = first_not_finite((key, tensor) for key, tensor in flat.items() if tensor.is_floating_point())
    if key is not None:
        findings.add(
            f'"{key}" of {path} has values that are not finite (NaN or infinity), and so would every output. Its '
            "training diverged, or the file is damaged; train again at a lower learning rate."
        )


def config_of(read: AdapterFile, named: Mapping[str, tuple[str, int]], findings: Findings) -> LoRAConfig:
    """Return the configuration that a file's settings make.

    Args:
        read: The file.
        named: PEFT's path of a pair -> what patterns call it, and of how many matrices it is a stack; a pair that is
            not among them is not looked at.
        findings: Takes a rank that isn't the one announced.

    Raises:
        AdapterFileError: A setting is out of its range.
    """
    fields, parts = read.fields, read.parts
    r, alpha = fields.get("r", 8), float(fields.get("lora_alpha", 8))
    ranks = {path: parts.pairs[path][0].shape[0] // stack for path, (_, stack) in named.items()}
    for name, said in _values("rank_pattern", fields, r, named).items():
        if ranks[name] != said:
            findings.add(
                f'lora_A of "{name}" has rank {ranks[name]}; {CONFIG_FILE} says r = {said}. '
                "The two files don't belong together."
            )
    alphas = _values("alpha_pattern", fields, alpha, named)
    try:
        return LoRAConfig(
            r=r,
            alpha=alpha,
            dropout=float(fields.get("lora_dropout", 0)),
            target_modules=tuple(parts.pairs),
            rank_pattern=pinned(ranks, r),
            alpha_pattern=pinned({name: float(value) for name, value in alphas.items()}, alpha),
            init=taken_off(fields) or "kaiming",
            scaling=SCALING_OF_RSLORA[bool(fields.get("use_rslora"))],
            modules_to_save=tuple(fields.get("modules_to_save") or ()),
            bias=fields.get("bias") or "none",
            variant=variant_of(fields),
            trainable_tokens=tokens_of_fields(fields, list(parts.tokens)),
            extra=foreign_fields(fields),
            **VARIANTS[variant_of(fields)].peft.read(fields),
        )
    except ConfigError as error:
        raise AdapterFileError(f"{read.settings} can't be used: {error}") from error


def _values(
    field: str, fields: Mapping[str, Any], default: Any, named: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    """Return the value that a pattern of the settings gives each pair, by its name.

    Keys of paths in a `base_layer` are Rankwise's: for an attention's out_proj that differs from its in_proj.
    """
    pattern: Mapping[str, Any] = fields.get(field) or {}
    by_path = peft_values({key: value for key, value in pattern.items() if BASE_LAYER in key}, None, named)
    by_name = peft_values(pattern, default, {name for name, _ in named.values()})
    return {path: by_name[named[path][0]] if value is None else value for path, value in by_path.items()}
