"""Embeddings of an enlarged vocabulary: which a model has, and what of them an adapter's file must hold.

Rows that `resize_token_embeddings` of transformers has added are drawn at random, so without them nobody could load the
adapter. PEFT writes the whole input and output embeddings then; so do we, unless the adapter trains these rows.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.targets.modules import named_once
from rankwise.lora.targets.token_rows import own_embedding

_LARGEST = 1 << 26
"""Bytes of a config.json that is read at most."""


def embeddings_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the input and output embeddings of a transformers model by their paths; none for other models."""
    found = [layer for which in ("input", "output") if (layer := own_embedding(model, which)) is not None]
    paths = dict(named_once(model)) if found else {}
    # Vision models call the module that makes patches their input embedding.
    rows = [layer for layer in found if layer in paths and isinstance(getattr(layer, "weight", None), Tensor)]
    return {paths[layer][0]: layer for layer in rows}


def embeddings_to_save(
    model: nn.Module,
    base_name: str | None,
    save: bool | None,
    tokens: Mapping[str, set[int]],
    held: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the weights of embeddings that a file must hold, by path.

    Args:
        model: The model.
        base_name: What the base is called; None for what the model says.
        save: Whether to save them all; None for those with new rows that the adapter doesn't train.
        tokens: Path of a layer -> tokens whose rows the adapter trains, also through a weight that is shared.
        held: Path of a parameter -> what the adapter has in its place.

    Raises:
        AdapterError: They are to be saved, and the model has none that are known.
    """
    found = embeddings_of(model) if save is not False else {}
    if save and not found:
        raise AdapterError(
            f"save_embeddings is for models of transformers; the {type(model).__name__} has no get_input_embeddings()."
        )
    first = 0 if save else _original_size(model, base_name)
    if first is None:
        return {}
    own: dict[str, Any] = {f"{path}.weight": layer.weight for path, layer in found.items()}
    return {
        path: weight
        for path, weight in own.items()
        if path not in held
        and (save or not tokens.get(path.removesuffix(".weight"), set()).issuperset(range(first, weight.shape[0])))
    }


def _original_size(model: nn.Module, base_name: str | None) -> int | None:
    """Return the vocabulary size in the base's own configuration; None where it isn't on this machine."""
    names = [base_name, getattr(model, "name_or_path", None)]
    for name in filter(None, names):
        path = Path(name, "config.json")
        if not path.is_file():
            path = _cached(str(name))
        if path is not None and path.stat().st_size <= _LARGEST:
            try:
                fields = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            size = fields.get("vocab_size", (fields.get("text_config") or {}).get("vocab_size"))
            return size if isinstance(size, int) else None
    return None


def _cached(name: str) -> Path | None:
    """Return the configuration of a model of the hub from the cache; nothing is downloaded."""
    if os.path.isabs(name) or name.count("/") > 1:
        return None
    # Present wherever a model of transformers is, and slow to import.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
