"""A model with its adapters merged, in the model's own format: what loads without Rankwise."""

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.adapter_files.tensor_file import write_tensors
from rankwise.errors import AdapterError, OutputError
from rankwise.locking import staging
from rankwise.lora.base.state import without_adapters
from rankwise.lora.checks.foreign import check_unwrapped_by_peft
from rankwise.lora.merge import MergeReport, merge, unmerge
from rankwise.lora.targets.modules import unwrapped
from rankwise.writing import plain_mode

WEIGHTS_STEM = "model"
"""Stem of the files with the weights, as transformers has them."""

SHARD = 5_000_000_000
"""Bytes: the size of a file of weights that transformers and the hub read as a complete one."""


def save_merged(
    model: nn.Module, directory: str | os.PathLike[str], *, max_shard_size: int = SHARD, dequantize: bool = False
) -> MergeReport:
    """Save a model with its active adapters merged into its weights; the model itself is afterwards as before.

    A model of transformers is saved by its own `save_pretrained` (one that takes a `state_dict`). Any other is saved as
    safetensors under the keys of its `state_dict()`: one file, or several with an index that says which tensor lies
    where.

    Args:
        model: An injected model.
        directory: The folder; it must not be there, or be empty.
        max_shard_size: Bytes of the largest file. One file at a time is held in memory with the model, and the old
            weights of the adapted layers are kept on the CPU while it lasts.
        dequantize: As of `merge`: quantised layers that are adapted are saved with plain weights.

    Returns:
        The report of `merge`: how well each weight holds its delta.

    Raises:
        AdapterError: The adapters can't be merged; the model holds state that is no tensor, or says in its
            configuration that its weights are quantised.
        OutputError: The folder holds something, or can't be written.

    Examples:
        >>> import rankwise, tempfile
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> _ = rankwise.inject(model, rankwise.LoRAConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_merged(model, folder)
        ...     [path.name for path in Path(folder).iterdir()]
        ['model.safetensors']
    """
    folder = Path(os.path.abspath(directory))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there and not empty; give a new folder.")
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise AdapterError(
            f"The configuration of the {type(model).__name__} says that its weights are quantised, so a merged model "
            "would be read wrongly. Load the base without quantisation, load the adapter on it, and save that."
        )
    check_unwrapped_by_peft(model)
    report = merge(model, dequantize=dequantize)
    try:
        with staging(folder) as staged:
            _write(model, staged, max_shard_size)
    except OSError as error:
        raise OutputError(f"The model can't be written to {folder}: {error.strerror or error}.") from error
    finally:
        unmerge(model)
    return report


def _write(model: nn.Module, folder: Path, max_shard_size: int) -> None:
    state = without_adapters(model)
    save: Any = getattr(unwrapped(model), "save_pretrained", None)
    # Others of that name (diffusers', the hub's mixin) would write the adapters with the merged weights.
    if callable(save) and "state_dict" in inspect.signature(save).parameters:
        save(folder, state_dict=state, max_shard_size=max_shard_size)
        for path in folder.rglob("*.safetensors"):
            plain_mode(path)
        return
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise AdapterError(f'"{key}" of the model is a {type(value).__name__}; only tensors can be saved.')
    shards = list(_shards(state, max_shard_size))
    names = [
        f"{WEIGHTS_STEM}.safetensors"
        if len(shards) == 1
        else f"{WEIGHTS_STEM}-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for name, keys in zip(names, shards, strict=True):
        # Copies: safetensors refuses tensors that share memory, and tied weights are to load under every name.
        write_tensors(folder / name, {key: _copy(state[key]) for key in keys}, {"format": "pt"})
    if len(shards) > 1:
        places = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": sum(map(_bytes, state.values()))}, "weight_map": places}
        (folder / f"{WEIGHTS_STEM}.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def _shards(state: Mapping[str, Tensor], most: int) -> Iterator[list[str]]:
    """Yield the keys of each file: in the model's order, as many as fit; a larger tensor has a file to itself."""
    keys: list[str] = []
    size = 0
    for key, tensor in state.items():
        if keys and size + _bytes(tensor) > most:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += _bytes(tensor)
    yield keys


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
