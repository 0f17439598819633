"""The tensor file of an adapter: safetensors, and on request the pickle that older tools wrote."""

import pickle
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rankwise.collector import collector_paused
from rankwise.errors import AdapterFileError, OutputError
from rankwise.writing import plain_mode

TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

_DAMAGED_PICKLE = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError),
    *(TypeError, ArithmeticError, ImportError, MemoryError, AssertionError),
)
"""Exceptions of the unpickler on foreign bytes: it checks nothing beforehand."""


def write_tensors(path: Path, flat: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OutputError: It can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with collector_paused():  # safetensors makes several objects a tensor
            save_file(flat, path, metadata=metadata)
        plain_mode(path)
    except SafetensorError as error:
        raise OutputError(f"{path} can't be written: {error}.") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        AdapterFileError: It is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Copies: the file's tensors lie in it at odd addresses, where products differ in last bits.
            flat = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  (no dict)
            return flat, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise AdapterFileError(f"{path} is damaged or cut short: {error}.") from error


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
