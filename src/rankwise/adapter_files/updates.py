"""The updates s B A that an adapter's folder holds, without its base, and the folder with others in their place."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.adapter_files.base.checksums import TENSORS, records_of_file
from rankwise.adapter_files.base.inits import taken_off
from rankwise.adapter_files.both_files import write_files
from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.folder import AdapterFile, read_through
from rankwise.adapter_files.peft.config import as_peft_pattern, peft_values, variant_of
from rankwise.adapter_files.peft.keys import BASE_LAYER, BIAS_KEY, key_of
from rankwise.adapter_files.peft.layer_tensors import KEY_ENDS
from rankwise.adapter_files.peft.matrices import MatrixPair, as_matrices
from rankwise.adapter_files.peft.paths import OUT_PROJ
from rankwise.errors import AdapterFileError
from rankwise.lora.targets.patterns import pinned
from rankwise.lora.trained_modules import joined
from rankwise.lora.variants import VARIANTS


@dataclass(frozen=True)
class StoredUpdate:
    r"""The update $s B A$ of one weight, as a folder holds it: n matrices of one shape.

    Args:
        path: Where A and B lie in the file: the module's path, with what PEFT wraps it in.
        names: What the settings call the weight. Several where only the base's code could tell which of a module's
            parameters this is.
        r: Rank of each matrix.
        alpha: Numerator of the scale, as the settings have it.
        scale: s.
        pair: A and B as matrices, in the types of the file.
    """

    path: str
    names: tuple[str, ...]
    r: int
    alpha: float
    scale: float
    pair: MatrixPair


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's folder: its updates, and all else it holds.

    Args:
        folder: The folder.
        file: Its content.
        updates: Path -> update.
    """

    folder: Path
    file: AdapterFile
    updates: dict[str, StoredUpdate]


def read_updates(directory: str | os.PathLike[str]) -> StoredAdapter:
    """Read an adapter's updates; no base is needed.

    Args:
        directory: A folder written by Rankwise or PEFT.

    Raises:
        AdapterFileError: A file is missing, damaged, of an unsupported kind or of another variant; or a rank can't be
            known without the base.
    """
    folder = Path(directory)
    file = read_through(folder, Findings(strict=True), allow_pickle=False)
    variant = variant_of(file.fields)
    if variant != "lora":
        why = (
            "all its layers share one A and B"
            if VARIANTS[variant].shared
            else "what it does depends on the base's weight"
        )
        raise AdapterFileError(
            f"{folder} is of a {VARIANTS[variant].label} adapter, and {why}; only plain LoRA has updates that stand "
            "for themselves. Merge it into its base, then extract a LoRA from the result."
        )
    if init := taken_off(file.fields):
        raise AdapterFileError(
            f"{file.settings} sets init_lora_weights: its A and B stand over the base less its {init} part, so they "
            "are no update of the base. Load it with load_adapter and save it again, which writes one."
        )
    return StoredAdapter(folder, file, updates_of(file, Findings(strict=True)))


def updates_of(file: AdapterFile, findings: Findings) -> dict[str, StoredUpdate]:
    """Return the updates of a file's pairs by their paths.

    Args:
        file: The file.
        findings: Takes a rank that can't be known without the base, or isn't what the settings say.
    """
    fields, pairs = file.fields, file.parts.pairs
    names = {path: _names(path, fields.get("target_parameters") or []) for path in pairs}
    ranks = _values(file, "rank_pattern", fields.get("r", 8), names, findings)
    alphas = _values(file, "alpha_pattern", fields.get("lora_alpha", 8), names, findings)
    updates: dict[str, StoredUpdate] = {}
    for path, (A, B) in pairs.items():
        r, bare = int(ranks[path]), bool(_parameters(path, fields.get("target_parameters") or []))
        if A.shape[0] % r or (A.shape[0] != r and not bare):
            findings.add(
                f'lora_A of "{path}" in {file.path} has rank {A.shape[0]}; {file.settings.name} says r = {r}. The two '
                "files don't belong together."
            )
            continue
        pair = as_matrices(A, B, A.shape[0] // r if bare else 1)
        alpha = float(alphas[path])
        updates[path] = StoredUpdate(path, names[path], pair.A.shape[1], alpha, _scale(fields, alpha, r), pair)
    return updates


def write_updates(
    directory: str | os.PathLike[str],
    source: StoredAdapter,
    updates: Mapping[str, tuple[Tensor, Tensor]],
) -> Path:
    r"""Write a folder like another one, with other updates.

    The settings keep their alpha: the scale is that of the new rank, and A and B are each divided by its root.

    Args:
        directory: The new folder.
        source: What the new one is like.
        updates: Path -> A (n, r, d_in) and B (n, d_out, r), of any rank, whose product is the update; for every path
            of `source`. Weights that the settings can't tell apart have one rank.

    Returns:
        The folder.

    Raises:
        OutputError: It can't be written.
    """
    file, ranks = source.file, dict[str, int]()
    flat = dict(file.flat)
    for path, (A, B) in updates.items():
        old = source.updates[path]
        r = A.shape[1] * old.pair.growth
        ranks |= dict.fromkeys(old.names, r)
        scale = _scale(file.fields, old.alpha, r)
        root = math.sqrt(abs(scale)) or 1.0
        pair = old.pair.filed(A / root, B / math.copysign(root, scale))
        for key, tensor, like in zip(_keys(flat, path), pair, file.parts.pairs[path], strict=True):
            flat[key] = tensor.to(like.dtype)
        if path in file.parts.biases:
            flat[key_of(path, BIAS_KEY)] = file.parts.biases[path] * (old.scale / (scale or 1.0))
    r = max(ranks.values())
    fields = file.fields | {"r": r, "rank_pattern": as_peft_pattern(pinned(ranks, r))}
    # Copies: safetensors refuses tensors that share memory.
    flat = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in flat.items()}
    return write_files(directory, fields, flat, records_of_file(file.metadata) if TENSORS in file.metadata else None)


def _scale(fields: Mapping[str, Any], alpha: float, r: int) -> float:
    return alpha / (math.sqrt(r) if fields.get("use_rslora") else r)


def _keys(flat: Mapping[str, Tensor], path: str) -> tuple[str, str]:
    """The keys of a pair: they differ by the kind of the layer."""
    found = {letter: key_of(path, end) for end, letter in KEY_ENDS.items() if key_of(path, end) in flat}
    return found["A"], found["B"]


def _parameters(path: str, target_parameters: Sequence[str]) -> list[str]:
    """The parameters of a module that `target_parameters` names, where it names some."""
    module = _unwrapped(path)
    named = (joined(module, target.rpartition(".")[2]) for target in target_parameters)
    ends = [f".{target}" for target in target_parameters]
    return list(dict.fromkeys(name for name in named if f".{name}".endswith(tuple(ends))))


def _unwrapped(path: str) -> str:
    return ".".join(piece for piece in path.split(".") if piece != BASE_LAYER)


def _names(path: str, target_parameters: Sequence[str]) -> tuple[str, ...]:
    """What the settings call the weight of a pair.

    Examples:
        >>> _names("h.0.attn.base_layer.out_proj", []), _names("h.experts.base_layer", ["experts.up", "experts.down"])
        (('h.0.attn',), ('h.experts.up', 'h.experts.down'))
    """
    if parameters := _parameters(path, target_parameters):
        return tuple(parameters)
    attention = path.removesuffix(f".{BASE_LAYER}.{OUT_PROJ}")
    if attention != path and not _parameters(attention, target_parameters):
        return (_unwrapped(attention),)  # PEFT has one rank for all of it
    return (_unwrapped(path),)


def _values(
    file: AdapterFile, field: str, default: Any, names: Mapping[str, tuple[str, ...]], findings: Findings
) -> dict[str, Any]:
    """Return what a pattern of the settings gives each pair."""
    pattern: Mapping[str, Any] = file.fields.get(field) or {}
    # Keys of paths in a `base_layer` are Rankwise's: for an attention's out_proj that differs from its in_proj.
    own = peft_values({key: value for key, value in pattern.items() if BASE_LAYER in key}, None, names)
    by_name = peft_values(pattern, default, {name for all_of_one in names.values() for name in all_of_one})
    values: dict[str, Any] = {}
    for path, called in names.items():
        possible = {by_name[name] for name in called} if own[path] is None else {own[path]}
        if len(possible) > 1:
            findings.add(
                f"{field} of {file.settings} gives {', '.join(called)} different values, and without the base nothing "
                f'says which of them "{path}" is. Give these parameters one value.'
            )
        values |= {path: possible.pop()}
    return values
