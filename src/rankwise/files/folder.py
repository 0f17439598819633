"""An adapter on disk: `adapter_config.json` and `adapter_model.safetensors` in one folder.

Reading is strict: what PEFT passes over with a warning (a wrong prefix, tensors too many or too few) is an
error here.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import AdapterFileError, ConfigError, OutputError
from rankwise.files.layer_tensors import KEY_ENDS
from rankwise.files.peft_config import CONFIG_FILE, SCALING_OF_RSLORA, fields_of, peft_values, read_fields
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import collector_paused
from rankwise.lora.patterns import pinned
from rankwise.writing import sort_metadata

TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model"
LINEAR_KEYS = ("lora_A.weight", "lora_B.weight")
CHECKSUM = "sha256"
"""Entry of the tensor file's metadata: SHA-256 over names, types, shapes and bytes of the tensors."""


def write_adapter(
    directory: str | os.PathLike[str],
    config: LoRAConfig,
    tensors: Mapping[str, tuple[Tensor, Tensor]],
    *,
    base_name: str | None = None,
    model_names: Iterable[str] = (),
    fan_in_fan_out: bool = False,
    key_ends: Mapping[str, tuple[str, str]] | None = None,
) -> Path:
    """Write A and B of a set of modules; no model is needed.

    Args:
        directory: The folder; made if need be.
        config: Gives alpha, scaling and dropout. Ranks are those of the tensors.
        tensors: Module path -> (A of shape (r, d_in), B of shape (d_out, r)), or as PEFT shapes them for other
            layers than Linear. Types are kept.
        base_name: What the base is called.
        model_names: Paths of all modules of the base, where they are known. PEFT takes a listed path for a
            suffix too; where that would reach other modules, the targets are written as one regular expression.
        fan_in_fan_out: PEFT's word for transformers' Conv1D layers.
        key_ends: Module path -> ends of the keys of A and B, where they aren't those of a Linear.

    Returns:
        The folder.

    Raises:
        AdapterFileError: A pair of tensors doesn't fit together, or there is none.
        OutputError: The folder can't be written.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_adapter(folder, LoRAConfig(r=1), {"fc": (torch.ones(1, 3), torch.ones(2, 1))})
        ...     config, tensors = read_adapter(folder)
        >>> config.alpha, tensors["fc"][0]
        (32.0, tensor([[1., 1., 1.]]))
    """
    if not tensors:
        raise AdapterFileError("There are no tensors to write; an adapter has at least one module.")
    for name, (A, B) in tensors.items():
        if not _is_pair(A, B):
            raise AdapterFileError(
                f'A of "{name}" has shape {tuple(A.shape)} and B {tuple(B.shape)}; (r, d_in) and (d_out, r) are needed.'
            )
    # Copies: safetensors refuses tensors that share memory, as slices of a stack do.
    flat = {
        key_of(name, end): tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, pair in tensors.items()
        for end, tensor in zip((key_ends or {}).get(name, LINEAR_KEYS), pair, strict=True)
    }
    fields = fields_of(config, {name: A.shape[0] for name, (A, _) in tensors.items()}, model_names)
    fields |= {"base_model_name_or_path": base_name, "fan_in_fan_out": fan_in_fan_out}
    folder = Path(directory)
    try:
        _replace_files(folder, fields, flat)
    except OSError as error:
        raise OutputError(f"The adapter can't be written to {folder}: {error.strerror or error}.") from error
    return folder


def read_adapter(
    directory: str | os.PathLike[str],
) -> tuple[LoRAConfig, dict[str, tuple[Tensor, Tensor]]]:
    """Read an adapter's settings and tensors; no model is needed.

    Args:
        directory: A folder written by `write_adapter` or by PEFT.

    Returns:
        The configuration, whose targets and patterns are paths of modules, and module path -> (A, B).

    Raises:
        AdapterFileError: A file is missing, damaged or of an unsupported kind.

    Examples:
        >>> read_adapter("nowhere")
        Traceback (most recent call last):
        rankwise.errors.AdapterFileError: nowhere has no adapter_config.json; an adapter is a folder with one.
    """
    _, config, tensors = read_whole(Path(directory))
    return config, tensors


# Writing


def key_of(name: str, end: str) -> str:
    return ".".join(part for part in (PREFIX, name, end) if part)


def _is_pair(A: Tensor, B: Tensor) -> bool:
    """Tell whether A and B have one r; a grouped convolution's B has r / groups columns."""
    same = A.shape[0] % B.shape[1] == 0 if A.ndim > 2 else A.shape[0] == B.shape[1]
    return A.ndim == B.ndim and same


def _checksum(flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(flat):
        tensor = flat[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def _replace_files(folder: Path, fields: Mapping[str, Any], flat: dict[str, Tensor]) -> None:
    """Write both files beside their place, then move them in.

    The old configuration goes first and the new one comes last: without it there is no adapter, so an
    interruption between the moves leaves none, and one before them leaves the old one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    made = not folder.exists()
    done = False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
            with collector_paused():  # safetensors makes several objects a tensor
                save_file(flat, Path(scratch, TENSOR_FILE), metadata={"format": "pt", CHECKSUM: _checksum(flat)})
            sort_metadata(Path(scratch, TENSOR_FILE))
            text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
            Path(scratch, CONFIG_FILE).write_text(text, encoding="utf-8")
            for name in (TENSOR_FILE, CONFIG_FILE):
                _flush(Path(scratch, name))
            (folder / CONFIG_FILE).unlink(missing_ok=True)
            for name in (TENSOR_FILE, CONFIG_FILE):
                os.replace(Path(scratch, name), folder / name)
        _flush(folder)
        done = True
    except SafetensorError as error:
        raise OutputError(f"The adapter can't be written to {folder}: {error}.") from error
    finally:
        if made and not done:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _flush(path: Path) -> None:
    """Have the disk hold what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


def read_whole(folder: Path) -> tuple[dict[str, Any], LoRAConfig, dict[str, tuple[Tensor, Tensor]]]:
    """Return the JSON's fields, the configuration they make, and the tensors by module."""
    fields = read_fields(folder / CONFIG_FILE)
    tensors = _read_tensors(folder)
    r, alpha = fields.get("r", 8), float(fields.get("lora_alpha", 8))
    ranks = {name: A.shape[0] for name, (A, _) in tensors.items()}
    for name, said in peft_values(fields.get("rank_pattern"), r, tensors).items():
        if ranks[name] != said:
            raise AdapterFileError(
                f'lora_A of "{name}" has rank {ranks[name]}; {CONFIG_FILE} says r = {said}. '
                "The two files don't belong together."
            )
    alphas = peft_values(fields.get("alpha_pattern"), alpha, tensors)
    try:
        config = LoRAConfig(
            r=r,
            alpha=alpha,
            dropout=float(fields.get("lora_dropout", 0)),
            target_modules=tuple(tensors),
            rank_pattern=pinned(ranks, r),
            alpha_pattern=pinned({name: float(value) for name, value in alphas.items()}, alpha),
            scaling=SCALING_OF_RSLORA[bool(fields.get("use_rslora"))],
        )
    except ConfigError as error:
        raise AdapterFileError(f"{folder / CONFIG_FILE} can't be used: {error}") from error
    return fields, config, tensors


def _read_tensors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module path -> (A, B), after the checks that need no model."""
    from safetensors import SafetensorError, safe_open

    path = folder / TENSOR_FILE
    if not path.is_file():
        old = folder / "adapter_model.bin"
        hint = (
            f" {old.name} is a pickle, which can run code when it is read; let PEFT load it and save it again."
            if old.exists()
            else ""
        )
        raise AdapterFileError(f"{folder} has no {TENSOR_FILE}.{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            flat: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dict)
            stored = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is damaged or cut short: {error}.") from error
    if stored is not None and stored != _checksum(flat):
        raise AdapterFileError(f"The tensors of {path} don't fit its checksum; the file was changed after saving.")

    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}\.(?:(.*)\.)?({'|'.join(map(re.escape, KEY_ENDS))})", key)
        if found is None:
            raise AdapterFileError(
                f'{path} has a tensor "{key}" of no use here; keys are "{key_of("<module>", LINEAR_KEYS[0])}" and '
                f'"...lora_B.weight". {_cause_of_strange_key(key)}'
            )
        if tensor.ndim < 2 or not tensor.is_floating_point() or 0 in tensor.shape:
            raise AdapterFileError(
                f'"{key}" in {path} has shape {tuple(tensor.shape)} and type {tensor.dtype}; a matrix of '
                "floating-point numbers, or the kernel of a convolution, is needed."
            )
        pairs.setdefault(found[1] or "", {})[KEY_ENDS[found[2]]] = tensor
    if not pairs:
        raise AdapterFileError(f"{path} holds no tensors.")
    for name, pair in pairs.items():
        for letter in "AB":
            if letter not in pair:
                missing = key_of(name, f"lora_{letter}.weight")
                raise AdapterFileError(f'{path} has no "{missing}", the other half of a pair it has.')
        if not _is_pair(pair["A"], pair["B"]):
            raise AdapterFileError(
                f'lora_A of "{name}" has shape {tuple(pair["A"].shape)}, lora_B {tuple(pair["B"].shape)}; '
                "(r, d_in) and (d_out, r) are needed, with one r."
            )
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def _cause_of_strange_key(key: str) -> str:
    causes = {
        r".*lora_magnitude_vector.*": "It is of a DoRA adapter, which isn't supported.",
        r".*lora_B\.bias": "It is a bias of an adapter (lora_bias), which isn't supported.",
        r".*lora_[AB]\.[^.]+\.weight": "It names an adapter inside the key: was it saved with state_dict()?",
        rf"(?!{re.escape(PREFIX)}\.).*lora_[AB]\.weight": f'It lacks the prefix "{PREFIX}.".',
    }
    return next(
        (cause for form, cause in causes.items() if re.fullmatch(form, key)), "Is it an adapter of another tool?"
    )
