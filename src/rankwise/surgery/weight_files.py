"""A model's weights on disk, one tensor in memory at a time."""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.errors import AdapterFileError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """The weights in a folder, or in one file, in safetensors.

    Args:
        place: A folder with model.safetensors, or with several shards and their index; or one such file.

    Raises:
        AdapterFileError: There are none, or the index is damaged.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.place = Path(place)
        self.folder = self.place if self.place.is_dir() else self.place.parent
        self._files: dict[Path, Any] = {}
        self._shards = self._find()

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._shards)

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        return tuple(self._open(self._shards[key]).get_slice(key).get_shape())

    def read(self, key: str) -> Tensor:
        """Read one tensor."""
        return self._open(self._shards[key]).get_tensor(key)

    def _find(self) -> dict[str, Path]:
        index, single = self.place / _INDEX, self.place if self.place.is_file() else self.place / _SINGLE
        if single.is_file():
            return dict.fromkeys(self._open(single).keys(), single)
        if index.is_file():
            try:
                names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                return {key: self.place / name for key, name in names.items()}
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise AdapterFileError(f"{index} is damaged; it says in which file each tensor lies.") from error
        raise AdapterFileError(
            f"{self.place} has no {_SINGLE} and no {_INDEX}. Give a model's folder on this machine, with its "
            "weights in safetensors."
        )

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise AdapterFileError(f"{path} can't be read, or is damaged: {error}.") from error
        return self._files[path]


def architecture(folder: Path) -> nn.Module:
    """Return the model that a folder's config.json describes, without numbers.

    Raises:
        AdapterFileError: There is none, or transformers can't make it.
    """
    try:
        import transformers
    except ImportError as error:
        raise AdapterFileError(
            "Which layers a model has is read with transformers, which isn't installed; give the model (model=)."
        ) from error
    import torch

    path = folder / "config.json"
    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        cls: Any = getattr(transformers, (config.architectures or ["none"])[0])
        with torch.device("meta"):
            return cls(config)
    except (OSError, ValueError, AttributeError, ImportError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise AdapterFileError(
            f"{path}, which says what kinds of layers the weights belong to, is missing or names no model of "
            f"transformers ({reason}). In Python rankwise.extract takes the model itself (model=)."
        ) from error
