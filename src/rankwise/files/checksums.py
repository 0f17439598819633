"""Checksums of an adapter file and of the base it belongs to.

Three entries of the tensor file's metadata, beside PEFT's own `"format": "pt"`:

| entry | over what |
|---|---|
| `sha256` | the other entries; names, types, shapes and bytes of the tensors |
| `sha256_config` | `adapter_config.json` without the white space between its parts |
| `base` | for each adapted weight of the base its type and 16 hexadecimal digits |

`base` is a sample. Hashing all of a base would cost seconds for every billion numbers, so up to 256 entries of each
adapted weight, spread evenly, and its shape are hashed. Another base differs in nearly every entry; one that differs
in a few entries only isn't told apart.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rankwise.errors import AdapterFileError
from rankwise.files.findings import Findings

TENSORS, CONFIG, BASE = "sha256", "sha256_config", "base"
SAMPLED = 256
"""Most entries of a base weight that are hashed."""


def metadata_of(flat: Mapping[str, Tensor], config: str, base: Mapping[str, Tensor | None]) -> dict[str, str]:
    """Return the metadata of a tensor file.

    Args:
        flat: Key -> contiguous tensor on the CPU.
        config: Text of `adapter_config.json`.
        base: Module path -> weight of the base; empty where it isn't known, None for one that can't be looked at.
    """
    entries = {"format": "pt", CONFIG: _config_checksum(config)}
    seen = {name: _describe(weight) for name, weight in base.items() if weight is not None}
    if seen:
        entries[BASE] = json.dumps(seen)
    return {**entries, TENSORS: _tensors_checksum(flat, entries)}


def check_file(path: Path, flat: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare the tensors with their checksum. A file with none of our entries is another tool's and passes.

    Raises:
        AdapterFileError: They differ.
    """
    if not metadata.keys() & {TENSORS, CONFIG, BASE}:
        return
    others = {key: value for key, value in metadata.items() if key != TENSORS}
    if metadata.get(TENSORS) != _tensors_checksum(flat, others):
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
    path: Path, metadata: Mapping[str, str], base: Mapping[str, Tensor | None], findings: Findings
) -> list[str]:
    """Compare the base's adapted weights with those the adapter was saved over.

    A weight of a narrower type than at saving, and one whose type holds no plain numbers (a quantised one), can't be
    compared.

    Args:
        path: The tensor file, for messages.
        metadata: Its metadata.
        base: Module path -> weight; None where it can't be looked at.
        findings: Takes the first weight that differs.

    Returns:
        What wasn't compared, in words; empty where everything was, or the file has no checksums.

    Raises:
        AdapterFileError: The checksums themselves are damaged.
    """
    if BASE not in metadata:
        return []
    try:
        stored = json.loads(metadata[BASE])
        wanted = {name: tuple(text.split(" ")) for name, text in stored.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise AdapterFileError(f"The checksums of the base in {path} can't be read: {error}.") from error
    skipped: dict[tuple[str, str], int] = {}
    for name, weight in base.items():
        if name not in wanted:
            continue
        dtype = getattr(torch, wanted[name][0], None)
        if weight is None or not isinstance(dtype, torch.dtype) or not _can_be_cast(weight.dtype, dtype):
            pair = (wanted[name][0], "quantised" if weight is None else _name_of(weight.dtype))
            skipped[pair] = skipped.get(pair, 0) + 1
        elif _describe(weight, dtype) != " ".join(wanted[name]):
            findings.add(
                f'The weight of "{name}" isn\'t the one {path} was saved over. Is this another base, another revision '
                "of it, or one that was trained further or merged since? Load the adapter's own base, or pass "
                "strict=False if you know that it fits."
            )
            break
    return [
        f"{count} weights of the base weren't compared: {was} when the adapter was saved, {now} here."
        for (was, now), count in skipped.items()
    ]


def _can_be_cast(own: torch.dtype, to: torch.dtype) -> bool:
    """Tell whether casting gives the numbers that `to` had: it is the same type, or a float that holds all of them."""
    return own == to or (own.is_floating_point and to.is_floating_point and torch.promote_types(own, to) == own)


def _describe(weight: Tensor, dtype: torch.dtype | None = None) -> str:
    dtype = dtype or weight.dtype
    # A view by steps: `weight` is never copied as a whole.
    flat = weight.detach().flatten()
    sample = flat[:: max(1, -(-flat.numel() // SAMPLED))].to("cpu", dtype)
    digest = hashlib.sha256(f"{tuple(weight.shape)}".encode())
    digest.update(_bytes(sample))
    return f"{_name_of(dtype)} {digest.hexdigest()[:16]}"


def _tensors_checksum(flat: Mapping[str, Tensor], entries: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for part in _parts(flat, entries):
        digest.update(part)
    return digest.hexdigest()


def _parts(flat: Mapping[str, Tensor], entries: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    yield json.dumps(entries, sort_keys=True).encode()
    for key in sorted(flat):
        yield f"\n{key} {flat[key].dtype} {tuple(flat[key].shape)}\n".encode()
        yield _bytes(flat[key])


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def _config_checksum(text: str) -> str:
    """Every byte counts but white space between the parts, which editors and version control rewrite."""
    return hashlib.sha256("".join(re.findall(r'"(?:\\.|[^"\\])*"|\S', text)).encode()).hexdigest()


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
