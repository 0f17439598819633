"""The values of an adapter file in place of an attached adapter's: compiled code stays valid."""

import os
from collections.abc import Collection

import torch
from torch import Tensor, nn

from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.model import read_for
from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, layers_with
from rankwise.lora.checks.threads import changes_model
from rankwise.lora.offloaded import has_data
from rankwise.lora.targets.find import Target
from rankwise.lora.trained_modules import replacement_tensors
from rankwise.lora.variants import FORMS, VARIANTS, VariantTensor


@changes_model
def swap_adapter(
    model: nn.Module,
    directory: str | os.PathLike[str],
    name: str = "default",
    *,
    strict: bool = True,
    allow_pickle: bool = False,
) -> list[str]:
    """Load a file's values into an attached adapter in place: a compiled model uses them without recompiling.

    The file must adapt the same modules in the same way. A smaller r is filled up with zeros; the file's scale goes
    into B, since the compiled code has the attached adapter's scale.

    Args:
        model: An injected model, compiled or not.
        directory: The folder, as for `load_adapter`.
        name: The adapter whose values are replaced.
        strict: As for `load_adapter`.
        allow_pickle: As for `load_adapter`.

    Returns:
        What `strict=True` would have refused, and what couldn't be checked.

    Raises:
        AdapterError: There is no such adapter, it is merged, or the file's differs in modules, rank or variant.
        AdapterFileError: The file is damaged or doesn't fit the model. In either case nothing is changed.

    Examples:
        >>> import tempfile
        >>> from rankwise import LoRAConfig, inject, save_adapter
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> _ = inject(model, LoRAConfig(r=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     swap_adapter(model, save_adapter(model, folder))
        []
    """
    layers, findings = layers_with(model, name), Findings(strict)
    for path, (_, lora) in layers.items():
        if lora.merged:
            raise AdapterError(f'"{path}" holds a merged adapter, whose values can\'t be replaced; call unmerge first.')
    read = read_for(model, directory, name, findings, allow_pickle)
    found = {path: target for target in read.targets for path in (target.name, *(tie.name for tie in target.ties))}
    _check_alike("adapts", layers.keys(), found.keys(), name, directory)
    own = replacement_tensors(model, name)
    _check_alike("has whole", own.keys(), read.replacements.keys(), name, directory)
    new: list[tuple[Tensor, Tensor]] = [(own[path], tensor) for path, tensor in read.replacements.items()]
    for target in read.targets:
        lora = layers[target.name][1]
        _check_layer(lora, name, target, read.config.variant)
        held = lora.parameters_of(name)
        for one in FORMS[target.variant].tensors:
            if not one.shared:
                values = read.tensors[target.name][one.name]
                values = values * (target.scale / lora.scale[name]) if one.up else values
                new.append((held[one.name], _filled_up(values, one, target.stack, held[one.name])))
    if not all(has_data(tensor) for tensor, _ in new):
        raise AdapterError(
            f'The numbers of "{name}" lie elsewhere (accelerate has offloaded the model, or it is on the meta device), '
            "so they can't be replaced in place. Eject the adapter and call load_adapter."
        )
    with torch.no_grad():
        for tensor, values in new:
            tensor.copy_(values)
    return [*findings.listed, *read.notes]


def _filled_up(values: Tensor, one: VariantTensor, stack: int, like: Tensor) -> Tensor:
    """A file's tensor at the rank of the attached adapter's; each matrix of a stack is filled up by itself."""
    if one.rank_dim is None:
        return values
    each, dim = values.unflatten(one.rank_dim, (stack, -1)), one.rank_dim
    more = like.shape[dim] // stack - each.shape[dim + 1]
    after = [0, 0] * (each.ndim - 2 - dim)
    return nn.functional.pad(each, (*after, 0, more), value=one.pad).flatten(dim, dim + 1)


def _check_alike(what: str, own: Collection[str], read: Collection[str], name: str, directory: object) -> None:
    for path in sorted({*own} ^ {*read}):
        who, other = (f'"{name}"', f"{directory}") if path in own else (f"{directory}", f'"{name}"')
        raise AdapterError(
            f'{who} {what} "{path}" and {other} doesn\'t. Only an adapter of the same modules can take its place; '
            "load it under another name."
        )


def _check_layer(lora: LoRA, name: str, target: Target, variant: str) -> None:
    path = target.name
    if lora.kind_of(name).tokens != target.layer_type.tokens:
        raise AdapterError(f'"{name}" and the file train other tokens of "{path}"; load it under another name.')
    if lora.form_of(name) != target.variant or lora.kind_of(name).slices:
        of = "on slices" if lora.kind_of(name).slices else f'of variant "{lora.form_of(name)}"'
        raise AdapterError(f'"{name}" is {of} and the file of variant "{target.variant}"; load it under another name.')
    if VARIANTS[variant].shared:
        raise AdapterError(
            f'"{name}" is of variant "{variant}", whose layers share tensors that a file may not fit; load it under '
            "another name."
        )
    r = lora.parameters_of(name)["A"].shape[0] // target.stack
    if target.r > r:
        raise AdapterError(
            f'The file has r = {target.r} at "{path}", and "{name}" r = {r}. Only a smaller r can be filled up: inject '
            "with the largest, or load the file under another name."
        )
    if lora.scale[name] == 0:
        raise AdapterError(
            f'"{name}" has scale 0 at "{path}", which no values can make another; load under another name.'
        )
