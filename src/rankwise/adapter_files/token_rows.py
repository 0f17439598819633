"""Rows of single tokens in PEFT's files, both ways.

There a row is what it has become, here what is added to the base's. So a file gives the rows that were trained over
whatever base it is loaded on, also where those of new tokens were drawn at random. PEFT writes the rows of a weight
that several layers share once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.peft.keys import TOKENS_KEY, key_of
from rankwise.adapter_files.placing import Layers
from rankwise.errors import TargetError, suggest
from rankwise.lora.adapter import LoRA
from rankwise.lora.offloaded import data_of
from rankwise.lora.targets.modules import Named
from rankwise.lora.targets.target import Target
from rankwise.lora.targets.token_rows import input_embedding, token_target

FIELD = "trainable_token_indices"
"""PEFT's word for `trainable_tokens`."""

Rows = tuple[tuple[int, ...], Tensor]
"""Tokens, and the row of each."""


def tokens_as_filed(layers: Layers, name: str, replacements: Mapping[str, Tensor]) -> dict[str, Rows]:
    """Return the rows of an adapter's tokens by path of their layer, each weight's once.

    Args:
        layers: The adapted layers.
        name: The adapter.
        replacements: Path of a parameter -> what the adapter has in its place.
    """
    filed: dict[str, Rows] = {}
    for path, (layer, lora) in layers.items():
        tokens = lora.kind_of(name).tokens
        if tokens and path in lora.configs[name].trainable_tokens:
            B = lora.tensors(name)["B"].detach()
            weight = replacements.get(f"{path}.weight", _weight_before(layer, lora))
            filed[path] = tokens, _base_rows(weight, tokens, B) + B.mT
    return filed


def _weight_before(layer: nn.Module, lora: LoRA) -> Tensor:
    if lora.base_weight is not None:
        return lora.base_weight
    weight = lora.weight(layer)
    return data_of(layer, lora.parameter) if weight.is_meta else weight


def _base_rows(weight: Tensor, tokens: Sequence[int], like: Tensor) -> Tensor:
    return weight.detach()[list(tokens)].to(like.device, like.dtype)


def tokens_of_fields(fields: Mapping[str, Any], paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the tokens of each path that has some, as PEFT finds them: a list's, or of the first key it ends in."""
    given: Any = fields.get(FIELD) or []
    by_key: dict[str, list[int]] = given if isinstance(given, dict) else {"": given}
    found = {path: next((tokens for key, tokens in by_key.items() if path.endswith(key)), []) for path in paths}
    return {path: list(tokens) for path, tokens in found.items() if tokens}


def find_unfiled(
    model: nn.Module,
    modules: Sequence[Named],
    where: object,
    fields: Mapping[str, Any],
    rows: Mapping[str, Tensor],
    findings: Findings,
) -> None:
    """Find tokens that the settings announce and of which the file has no rows."""
    given: Any = fields.get(FIELD) or []
    if isinstance(given, dict):
        missing = [key for key in given if not any(path.endswith(key) for path in rows)]
        # Of layers that share one weight PEFT writes the rows of one.
        shared = {id(weight) for path in rows if (weight := _weight_at(modules, path)) is not None}
        missing = [key for key in missing if id(_weight_at(modules, key)) not in shared]
    else:
        missing = [input_embedding(model, modules)[1][0]] if given and not rows else []
    if missing:
        findings.add(f'{where} has no "{key_of(missing[0], TOKENS_KEY)}", which {FIELD} announces. Is it incomplete?')


def _weight_at(modules: Sequence[Named], end: str) -> Tensor | None:
    found = (module for module, names in modules if any(name.endswith(end) for name in names))
    return next((weight for module in found if (weight := getattr(module, "weight", None)) is not None), None)


def tokens_of_file(
    model: nn.Module,
    modules: Sequence[Named],
    rows: Mapping[str, Tensor],
    tokens: Mapping[str, Sequence[int]],
    others: Sequence[Target],
    replacements: Mapping[str, Tensor],
    findings: Findings,
    untie: bool = False,
) -> tuple[list[Target], dict[str, tuple[Tensor, Tensor]]]:
    """Find the layers of a file's tokens in a model.

    Args:
        model: The base.
        modules: All its modules.
        rows: Path of a layer -> rows of tokens.
        tokens: Path of a layer -> the tokens.
        others: The file's other targets.
        replacements: Path of a parameter -> what the file has in its place.
        findings: Takes what has no place.
        untie: Whether a layer that shares its weight is to get its own copy.

    Returns:
        The targets, and A and B by their names.
    """
    by_path = {name: (module, names) for module, names in modules for name in names}
    taken = {name: other.name for other in others for name in (other.name, *other.aliases)}
    targets: list[Target] = []
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    place = {name: i for i, (_, names) in enumerate(modules) for name in names}
    for path, values in sorted(rows.items(), key=lambda entry: place.get(entry[0], 0)):
        # PEFT writes the rows of a shared weight a second time where it writes the embeddings too.
        named = [rows[other.name] for other in targets if path in other.aliases and other.name in rows]
        if any(first.dtype == values.dtype and torch.equal(first, values) for first in named):
            continue
        if path not in by_path:
            findings.add(
                f'The file has rows of tokens for "{path}", which the model lacks.{suggest(path, by_path)} '
                "Was it trained on another model?"
            )
            continue
        if path not in tokens:
            findings.add(f'The file has rows of tokens for "{path}", and {FIELD} doesn\'t say which they are.')
            continue
        module, names = by_path[path]
        try:
            target = token_target(model, modules, module, names, tokens[path], untie)
        except TargetError as error:
            findings.add(f"The file doesn't fit: {error}")
            continue
        if both := next((name for name in (target.name, *target.aliases) if name in taken), None):
            what = "rows of tokens" if any(taken[both] == it.name for it in targets) else "A and B"
            findings.add(f'The file has {what} for "{taken[both]}" and rows of tokens for "{path}": one weight here.')
            continue
        if tuple(values.shape) != (target.r, target.d_out) or not values.is_floating_point():
            findings.add(
                f'"{key_of(path, TOKENS_KEY)}" has shape {tuple(values.shape)} and type {values.dtype}; the base layer '
                f"needs {(target.r, target.d_out)} floating-point numbers. Was it trained on another model?"
            )
            continue
        weight = replacements.get(f"{target.name}.weight")
        weight = data_of(module, "weight") if weight is None else weight
        wide = torch.promote_types(values.dtype, torch.float32)
        B = (values.to(weight.device, wide) - _base_rows(weight, tokens[path], values.to(weight.device, wide))).mT
        targets.append(target)
        pairs[target.name] = B.new_zeros(target.r, 0), B
        taken |= dict.fromkeys((target.name, *target.aliases), target.name)
    return targets, pairs
