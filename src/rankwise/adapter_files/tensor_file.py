"""The tensor file of an adapter: safetensors, and on request the pickle that older tools wrote."""

import json
import pickle
import sys
from collections.abc import Generator, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rankwise.adapter_files.base.checksums import raw_bytes
from rankwise.collector import collector_paused
from rankwise.errors import AdapterFileError, OutputError
from rankwise.writing import plain_mode, sort_metadata

TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

_DAMAGED_PICKLE = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError),
    *(TypeError, ArithmeticError, ImportError, MemoryError, AssertionError),
)
"""Exceptions of the unpickler on foreign bytes: it checks nothing beforehand."""


_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types and their names in a safetensors file, in the order in which tensors lie there."""

_BY_NAME = {name: dtype for dtype, name in _TYPES.items()}

_AT_ONCE = 1 << 26
"""Bytes of a file that is read as a whole; of a larger one tensor by tensor, which takes longer and less memory."""


def write_tensors(path: Path, flat: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, its metadata in order: equal content makes equal files.

    Raises:
        OutputError: It can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with collector_paused():  # several objects a tensor
            if sys.byteorder == "little" and all(_is_usual(tensor) for tensor in flat.values()):
                with path.open("wb") as file:
                    file.writelines(_usual_parts(flat, metadata))
            else:
                save_file(flat, path, metadata=metadata)
                sort_metadata(path)
        plain_mode(path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path} can't be written: {error}.") from error


def _is_usual(tensor: Tensor) -> bool:
    usual = tensor.dtype in _TYPES and tensor.layout == torch.strided
    return usual and tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg()


def file_parts(flat: dict[str, Tensor], metadata: dict[str, str]) -> Iterable[Any]:
    """The bytes of a safetensors file, part after part: those of tensors are their own memory, no copy."""
    if sys.byteorder == "little" and all(_is_usual(tensor) for tensor in flat.values()):
        return _usual_parts(flat, metadata)
    from safetensors.torch import save

    return [save(flat, metadata)]


def _usual_parts(flat: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Generator[Any]:
    """The bytes that `save_file` writes, which takes some 20 us for each tensor."""
    places = {dtype: place for place, dtype in enumerate(_TYPES)}
    ordered = sorted(flat.items(), key=lambda item: (places[item[1].dtype], item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield raw_bytes(tensor.view(-1))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        AdapterFileError: It is damaged.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        if path.stat().st_size <= _AT_ONCE:
            content = path.read_bytes()
            found = deserialize(content)  # checked, and copied
            if all(entry["dtype"] in _BY_NAME for _, entry in found):
                return {key: _tensor_of(entry) for key, entry in sorted(found, key=itemgetter(0))}, _metadata_in(
                    content
                )
        with safe_open(path, framework="pt") as file:
            # Copies: the file's tensors lie in it at odd addresses, where products differ in last bits.
            flat = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  (no dict)
            return flat, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise AdapterFileError(f"{path} is damaged or cut short: {error}.") from error


def _tensor_of(entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _BY_NAME[entry["dtype"]], entry["shape"]
    if not entry["data"]:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(entry["data"], dtype=dtype).view(shape).clone()


def _metadata_in(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file that has been checked."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict that `torch.save` wrote, by the unpickler that makes tensors only.

    Raises:
        AdapterFileError: It is damaged, or holds something else.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED_PICKLE as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AdapterFileError(
            f"{path} is damaged, or holds more than tensors: {type(error).__name__} {reason}"
        ) from error
    if not isinstance(content, dict):
        raise AdapterFileError(f"{path} holds a {type(content).__name__}; a state dict (name -> tensor) is needed.")
    state = cast("dict[Any, Any]", content)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AdapterFileError(f"{path} holds {key!r}: {type(value).__name__}; names and tensors are needed.")
    return state


def read_either(folder: Path, allow_pickle: bool) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """Read the tensor file of a folder: the safetensors file, else the pickle where that is allowed.

    Returns:
        The file that was read, its tensors, its metadata.

    Raises:
        AdapterFileError: There is none that may be read, or it is damaged.
    """
    path, old = folder / TENSOR_FILE, folder / PICKLE_FILE
    if path.is_file():
        return path, *read_tensors(path)
    if not old.is_file():
        raise AdapterFileError(f"{folder} has no {TENSOR_FILE}.")
    if not allow_pickle:
        raise AdapterFileError(
            f"{folder} has no {TENSOR_FILE}, only {old.name}: a pickle, an unsafe format. If you trust its source, "
            "pass allow_pickle=True; only tensors are taken from it."
        )
    return old, read_pickle(old), {}
