"""Keys of a file as this model has them: without wrappers' words, under today's names, in their usual form."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rankwise.adapter_files.peft.embeddings import embeddings_of
from rankwise.adapter_files.peft.keys import OWN_KEYS, PREFIX
from rankwise.lora.targets.modules import WRAPPER_WORDS, base_tensors, walk

_RENAMED = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("visual.", "model.visual."),
    ("vision_tower.", "model.vision_tower."),
    ("vision_model.", "model.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("model.", "model.language_model."),
)
"""Prefixes of paths in vision-language models, in transformers before 4.52 and since."""

_PART = re.compile(rf"\.(lora_|{'|'.join(OWN_KEYS)}|base_layer\.|token_adapter\.)")
"""Matches the end of the module's path in an adapter's key."""


@dataclass(frozen=True)
class KnownModel:
    """Facts of the model that a file is read for.

    Args:
        modules: Paths of its modules.
        tensors: Paths of its parameters and buffers.
        embeddings: Paths of its input and output embeddings.
    """

    modules: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()
    embeddings: Iterable[str] = field(default=())


_OWN_ENDS = tuple(f".{own}.weight" for own in OWN_KEYS)


def known_of(model: nn.Module) -> KnownModel:
    """Return what is known of a model."""
    modules = frozenset(path for path, _ in walk(model))
    return KnownModel(modules, frozenset(base_tensors(model)), tuple(embeddings_of(model)))


def as_usual(flat: Mapping[str, Tensor], known: KnownModel) -> dict[str, Tensor]:
    """Return the tensors of a file under the usual keys, 8-bit floats as float32: torch can't compute with these."""
    return {
        _key(key, known): tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
        for key, tensor in flat.items()
    }


def fields_as_usual(fields: Mapping[str, Any], known: KnownModel) -> dict[str, Any]:
    """Return the settings with the paths that this model has."""
    result = dict(fields)
    for name in ("target_modules", "modules_to_save", "target_parameters"):
        if isinstance(result.get(name), list):
            result[name] = [_path(path, known) for path in result[name]]
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(result.get(name), dict):
            result[name] = {_path(path, known): value for path, value in result[name].items()}
    return result


def _key(key: str, known: KnownModel) -> str:
    before, prefix, inside = key.rpartition(f"{PREFIX}.")
    if not prefix or (before and before.rstrip(".") not in {*WRAPPER_WORDS, "module"}):
        return key
    if inside not in known.tensors:
        part = _PART.search(inside)
        path, end = (inside[: part.start()], inside[part.start() :]) if part else (inside, "")
        if end.endswith(_OWN_ENDS):
            end = end.removesuffix(".weight")
        inside = _path(path, known) + end
    return f"{prefix}{inside}"


def _path(path: str, known: KnownModel) -> str:
    """Return a path, of a module or of a tensor, as the model has it; unchanged where nothing is known of it."""
    if _is_there(path, known) or not path:
        return path
    pieces = path.split(".")
    plain = ".".join(piece for piece in pieces if piece not in WRAPPER_WORDS)
    if pieces[0] == "module" and "module" not in known.modules and known.modules:
        plain = plain.removeprefix("module.")
    for old, new in _RENAMED if not _is_there(plain, known) else ():
        if plain.startswith(old) and _is_there(new + plain.removeprefix(old), known):
            return new + plain.removeprefix(old)
    return plain


def _is_there(path: str, known: KnownModel) -> bool:
    return path in known.modules or path in known.tensors
