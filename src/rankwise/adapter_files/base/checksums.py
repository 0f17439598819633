"""Checksums of an adapter file and of the base it belongs to.

Entries of the tensor file's metadata, in addition to PEFT's `"format": "pt"`:

| entry | over what |
|---|---|
| `sha256` | the other entries; names, types, shapes and bytes of the tensors |
| `sha256_config` | `adapter_config.json` without the white space between its parts |
| `base` | for each adapted weight of the base its type and 16 hexadecimal digits |
| `base_others` | the same, and the shape, for all its other parameters and buffers |
| `buffers` | paths of the buffers that the file holds because training has changed them |

`base` and `base_others` are samples. Hashing all of a base would cost seconds for every billion numbers, so up to
256 entries of each tensor, spread evenly, and its shape are hashed. Another base differs in nearly every entry; one
that differs in a few entries only isn't distinguished.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapter_files.findings import Findings
from rankwise.errors import AdapterFileError
from rankwise.lora.offloaded import gathered

TENSORS, CONFIG, BASE, OTHERS, BUFFERS = "sha256", "sha256_config", "base", "base_others", "buffers"
PLAIN = {"format": "pt"}
"""Metadata that PEFT writes."""

_IN_NUMPY = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)

SAMPLED = 256
"""Most entries of a base weight that are hashed."""


@dataclass(frozen=True)
class BaseRecord:
    """A file's record of its base. A tensor that can't be read (a quantised one) is None.

    Args:
        adapted: Path of an adapted layer -> its weight.
        other_weights: Path of any other parameter or buffer -> its values.
        buffers: Paths of the buffers that the file holds because training has changed them.
        paths: All paths of parameters and buffers of a model that a file is read for.
    """

    adapted: Mapping[str, Tensor | None] = field(default_factory=dict[str, Tensor | None])
    other_weights: Mapping[str, Tensor | None] = field(default_factory=dict[str, Tensor | None])
    buffers: Collection[str] = ()
    paths: Collection[str] = ()


def metadata_of(flat: Mapping[str, Tensor], config: str, records: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a tensor file.

    Args:
        flat: Key -> contiguous tensor on the CPU.
        config: Text of `adapter_config.json`.
        records: Entries on the base, of `records_of_base` or `records_of_file`.
    """
    entries = {**PLAIN, CONFIG: _config_checksum(config), **records}
    return {**entries, TENSORS: _tensors_checksum(flat, entries)}


def records_of_file(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a file's metadata say of its base, for another adapter of this base."""
    return {entry: metadata[entry] for entry in (BASE, OTHERS, BUFFERS) if entry in metadata}


def records_of_base(base: BaseRecord) -> dict[str, str]:
    """Return what metadata say of a base, as far as it is known."""
    entries: dict[str, str] = {}
    seen = _described({name: (tensor, tensor.dtype) for name, tensor in base.adapted.items() if tensor is not None})
    others = {name: (tensor, tensor.dtype) for name, tensor in base.other_weights.items() if tensor is not None}
    other_weights = _described(others, shaped=True)
    if seen:
        entries[BASE] = json.dumps(seen)
    if other_weights:
        entries[OTHERS] = json.dumps(other_weights)
    if base.buffers:
        entries[BUFFERS] = json.dumps(sorted(base.buffers))
    return entries


def check_file(path: Path, flat: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare the tensors with their checksum. A file with none of our entries is another tool's and passes.

    Raises:
        AdapterFileError: They differ.
    """
    if not metadata.keys() & {TENSORS, CONFIG, BASE}:
        return
    other_weights = {key: value for key, value in metadata.items() if key != TENSORS}
    if metadata.get(TENSORS) != _tensors_checksum(flat, other_weights):
        raise AdapterFileError(
            f"The tensors of {path} don't fit its checksum: the file is damaged or was changed after saving. "
            "Copy it again from where it came."
        )


def check_config(path: Path, text: str, metadata: Mapping[str, str], findings: Findings) -> None:
    """Compare the settings with the checksum that the tensor file has of them."""
    stored = metadata.get(CONFIG)
    if stored is not None and stored != _config_checksum(text):
        findings.add(
            f"{path} doesn't fit the checksum in the tensor file: it is damaged, was edited after saving, or belongs "
            "to other tensors. If you edited it on purpose, load with strict=False and save again."
        )


def check_base(
    path: Path,
    metadata: Mapping[str, str],
    base: BaseRecord,
    findings: Findings,
    embeddings: Collection[str] = (),
) -> list[str]:
    """Compare the base with the one the adapter was saved over.

    A weight of a narrower type than at saving, and one whose type holds no plain numbers (a quantised one), can't be
    compared.

    Args:
        path: The tensor file, for messages.
        metadata: Its metadata.
        base: The model's base.
        findings: Takes the first tensor that differs.
        embeddings: Paths of weights that may have another number of rows: the vocabulary may have been enlarged.

    Returns:
        What wasn't compared, in words; empty where everything was, or the file has no checksums.

    Raises:
        AdapterFileError: The checksums themselves are damaged.
    """
    skipped: Counter[tuple[str, str]] = Counter()
    adapted = _stored(path, metadata, BASE)
    if (different := _first_different(adapted, base.adapted, skipped)) is not None:
        findings.add(
            f'The weight of "{different}" isn\'t the one {path} was saved over. Is this another base, another revision '
            "of it, or one that was trained further or merged since? Load the adapter's own base, or pass "
            "strict=False if you know that it fits."
        )
        return _not_compared(skipped)
    other_weights = _stored(path, metadata, OTHERS)
    resized = [
        name
        for name in embeddings
        if name in other_weights
        and (now := base.other_weights.get(name)) is not None
        and other_weights[name][2:] != _shape_of(now)
    ]
    compared = {name: values for name, values in other_weights.items() if name not in resized and name not in adapted}
    if (different := _first_different(compared, base.other_weights, skipped, shaped=True)) is not None:
        findings.add(
            f"\"{different}\" isn't what it was when {path} was saved, and the file doesn't hold it. Is this another "
            "base, or was a new head, drawn at random, left out of the adapter? Load the adapter's own base and train "
            "a new head with the adapter (modules_to_save), or pass strict=False if you know that it fits."
        )
    elif gone := next((name for name, values in other_weights.items() if _is_missing(name, values, base.paths)), None):
        findings.add(
            f'{path} was saved over a base with "{gone}", which this model lacks. Is it another base, or a part of it? '
            "Load the adapter's own base, or pass strict=False if you know that it fits."
        )
    recorded = {*adapted, *(f"{name}.weight".lstrip(".") for name in adapted), *other_weights, *embeddings}
    complete = bool(other_weights) and not skipped and base.adapted.keys() <= adapted.keys()
    return [*_not_compared(skipped), *(_unknown(base, recorded) if complete else ())]


def _is_missing(name: str, values: tuple[str, ...], paths: Collection[str]) -> bool:
    """Tell whether a model lacks a tensor of the base that was saved over; whole numbers (positions) come and go."""
    dtype = getattr(torch, values[0], None)
    return bool(paths) and name not in paths and isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _unknown(base: BaseRecord, recorded: Collection[str]) -> list[str]:
    """Report how many parameters of this model the recorded base lacks."""
    more = [
        name for name, tensor in base.other_weights.items() if name not in recorded and isinstance(tensor, nn.Parameter)
    ]
    if not more:
        return []
    return [
        f'The model has {len(more)} parameters that the base lacked when the adapter was saved ("{more[0]}"): is it '
        "another base, or was a part added since? Compare its outputs."
    ]


def _stored(path: Path, metadata: Mapping[str, str], entry: str) -> dict[str, tuple[str, ...]]:
    try:
        stored = json.loads(metadata.get(entry, "{}"))
        return {name: tuple(text.split(" ")) for name, text in stored.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise AdapterFileError(f"The checksums of the base in {path} can't be read: {error}.") from error


def buffers_of(path: Path, metadata: Mapping[str, str]) -> list[str]:
    """Return the paths of the buffers that a file holds because training had changed them.

    Raises:
        AdapterFileError: The entry is damaged.
    """
    try:
        found = json.loads(metadata.get(BUFFERS, "[]"))
        return [str(name) for name in found]
    except (ValueError, TypeError, RecursionError) as error:
        raise AdapterFileError(f"The list of buffers in {path} can't be read: {error}.") from error


def _first_different(
    wanted: Mapping[str, tuple[str, ...]],
    base: Mapping[str, Tensor | None],
    skipped: Counter[tuple[str, str]],
    *,
    shaped: bool = False,
) -> str | None:
    compared: dict[str, tuple[Tensor, torch.dtype]] = {}
    for name, weight in base.items():
        if name not in wanted:
            continue
        dtype = getattr(torch, wanted[name][0], None)
        if weight is None or not isinstance(dtype, torch.dtype) or not _can_be_cast(weight.dtype, dtype):
            skipped[wanted[name][0], "quantised or without data" if weight is None else _name_of(weight.dtype)] += 1
        else:
            compared[name] = weight, dtype
    described = _described(compared, shaped=shaped)
    return next((name for name, text in described.items() if text != " ".join(wanted[name])), None)


def _not_compared(skipped: Mapping[tuple[str, str], int]) -> list[str]:
    return [
        f"{count} weights of the base weren't compared: {was} when the adapter was saved, {now} here."
        for (was, now), count in skipped.items()
    ]


def _shape_of(tensor: Tensor) -> tuple[str, ...]:
    return ("x".join(map(str, tensor.shape)),)


def _can_be_cast(own: torch.dtype, to: torch.dtype) -> bool:
    """Tell whether casting gives the numbers that `to` had: it is the same type, or a float that holds all of them."""
    if own == to:
        return True
    floats = own.is_floating_point and to.is_floating_point and min(own.itemsize, to.itemsize) > 1
    return floats and torch.promote_types(own, to) == own


def _described(weights: Mapping[str, tuple[Tensor, torch.dtype]], *, shaped: bool = False) -> dict[str, str]:
    """Return what is recorded of tensors: the type they are looked at in, a checksum of a sample, and the shape.

    Args:
        weights: Name -> tensor, and the type.
        shaped: Whether the shape is recorded too.
    """
    samples: dict[tuple[torch.device, torch.dtype, torch.dtype], list[Tensor]] = {}
    kinds: dict[str, tuple[tuple[torch.device, torch.dtype, torch.dtype], int]] = {}
    for name, (weight, dtype) in weights.items():
        # A view by steps: `weight` is never copied as a whole, unless other processes have parts of it.
        flat = gathered(weight.detach() if weight.requires_grad else weight).flatten()
        step = -(-flat.numel() // SAMPLED)
        sample = flat if step <= 1 else flat[::step].clone()
        kind = flat.device, flat.dtype, dtype
        samples.setdefault(kind, []).append(sample)
        kinds[name] = kind, sample.numel() * dtype.itemsize
    # Copied side by side, since a copy of few numbers takes as long as one of many.
    copied = {kind: raw_bytes(torch.cat(beside).to("cpu", kind[2])).view("uint8") for kind, beside in samples.items()}
    found: dict[str, str] = {}
    starts = dict.fromkeys(samples, 0)
    for name, (weight, dtype) in weights.items():
        kind, length = kinds[name]
        end = starts[kind] + length
        digest = hashlib.sha256(f"{tuple(weight.shape)}".encode())
        digest.update(copied[kind][starts[kind] : end])
        starts[kind] = end
        words = [_name_of(dtype), digest.hexdigest()[:16], *(_shape_of(weight) if shaped else ())]
        found[name] = " ".join(words)
    return found


def _tensors_checksum(flat: Mapping[str, Tensor], entries: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for part in _parts(flat, entries):
        digest.update(part)
    return digest.hexdigest()


def _parts(flat: Mapping[str, Tensor], entries: Mapping[str, str]) -> Iterator[Any]:
    yield json.dumps(entries, sort_keys=True).encode()
    for key in sorted(flat):
        yield f"\n{key} {flat[key].dtype} {tuple(flat[key].shape)}\n".encode()
        yield raw_bytes(flat[key].contiguous())


def raw_bytes(tensor: Tensor) -> Any:
    """Return the memory of a contiguous tensor on the CPU, as an array that files and checksums read."""
    plain = tensor.detach() if tensor.requires_grad else tensor
    return (plain if plain.dtype in _IN_NUMPY else plain.flatten().view(torch.uint8)).numpy()


def _config_checksum(text: str) -> str:
    """Every byte counts but white space between the parts, which editors and version control rewrite."""
    return hashlib.sha256("".join(re.findall(r'"(?:\\.|[^"\\])*"|\S', text)).encode()).hexdigest()


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
