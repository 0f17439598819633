"""Obstacles to saving an adapter: missing layers, values that are not finite, sharded tensors."""

import warnings
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn

from rankwise.adapter_files.base.finite import first_not_finite
from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA
from rankwise.lora.base.counts import counts_of
from rankwise.lora.base.samples import changed_base
from rankwise.lora.checks.complete import lost_message, lost_paths
from rankwise.lora.offloaded import gathered, has_data

Layers = Mapping[str, tuple[nn.Module, LoRA]]


def check_savable(
    model: nn.Module, name: str, layers: Layers, replacements: Mapping[str, Tensor], strict: bool
) -> None:
    """Raise, or warn, unless a file can hold all of an adapter.

    Args:
        model: The model.
        name: The adapter.
        layers: Its adapted layers.
        replacements: What it has in place of the base's parameters and buffers.
        strict: Whether what can be saved all the same, but isn't what was trained, is an error.

    Raises:
        AdapterError: Tensors are sharded or have no data; or layers are gone or numbers not finite, and `strict`.
    """
    for path, (_, lora) in layers.items():
        held, declared = lora.parameters_of(name), lora.variant_of(name).tensors
        if not {"A", "B"} <= held.keys():
            raise AdapterError(
                f'Adapter "{name}" is of variant "{lora.configs[name].variant}", which has no A and B, and no form in '
                "PEFT's files. Merge it instead: merge(model)."
            )
        if any(held[one.name] is None or held[one.name].ndim != one.ndim for one in declared):
            raise AdapterError(
                f'A and B of "{path}" are sharded by FullyShardedDataParallel. Save inside `with '
                "FullyShardedDataParallel.summon_full_params(model):`, with use_orig_params=True."
            )
    problems: list[str] = []
    if lost := lost_paths(model, name):
        problems.append(lost_message(name, lost) + " Put the adapted layer back.")
    tensors = list(_tensors(name, layers, replacements))
    if (path := next((path for path, tensor in tensors if not has_data(tensor)), None)) is not None:
        raise AdapterError(
            f'Adapter "{name}" has no numbers at "{path}": it was attached in a fake mode, or loses them on the '
            "meta device. Attach it outside of that."
        )
    if (path := first_not_finite(tensors)) is not None:
        problems.append(
            f'Adapter "{name}" holds values at "{path}" that are not finite (NaN or infinite): training diverged. '
            "Train again with a lower learning rate."
        )
    if problems and strict:
        raise AdapterError(f"{problems[0]} To save what there is: strict=False.")
    for problem in problems:
        warnings.warn(problem, stacklevel=4)


def check_base_as_before(model: nn.Module, held: Collection[str], strict: bool) -> list[str]:
    """Raise, or warn, where the base has changed since training began and a file doesn't hold what it is now.

    Args:
        model: The model.
        held: Paths of the parameters and buffers that the file holds.
        strict: Whether that is an error.

    Returns:
        Paths of large buffers that have changed, which the file can hold.

    Raises:
        AdapterError: It has, and `strict`.
    """
    changed = changed_base(model)
    if lost := [path for path in changed.lasting if path not in held]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        problem = (
            f'The base\'s "{lost[0]}"{more} has changed since training began (unfrozen after inject, written to by the '
            "model itself, or cast to fewer bits and back), and an adapter's file doesn't hold it. Train it with the "
            "adapter (modules_to_save, bias), or save all of the model."
        )
        if strict:
            raise AdapterError(f"{problem} To save what there is: strict=False.")
        warnings.warn(problem, stacklevel=4)
    if fleeting := [path for path in changed.fleeting if path not in held]:
        warnings.warn(
            f'The buffer "{fleeting[0]}" has changed since training began. It is in no checkpoint (persistent=False), '
            "so the file doesn't hold it either; compare the outputs of the loaded adapter.",
            stacklevel=4,
        )
    if counts := counts_of(model):
        warnings.warn(
            f'The number "{counts[0]}" of the model, a plain attribute, changes with each training forward. No file '
            "holds it, so where outputs depend on it, the loaded adapter gives others; register it as a buffer.",
            stacklevel=4,
        )
    return list(changed.large)


def _tensors(name: str, layers: Layers, replacements: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for path, (_, lora) in layers.items():
        for tensor in lora.tensors(name).values():
            yield path, tensor
    # A buffer may hold infinite numbers on purpose: masks do.
    yield from ((path, gathered(t.detach())) for path, t in replacements.items() if isinstance(t, nn.Parameter))
