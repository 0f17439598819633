"""Several named adapters in one model: choose the active ones, for all rows or for each row; rename one."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, adapted_layers, layers_with
from rankwise.lora.checks.first_steps import stop_counting
from rankwise.lora.checks.reads import call
from rankwise.lora.checks.threads import changes_model, held_by_thread
from rankwise.lora.inject import check_new_name
from rankwise.lora.layer.per_row import ByRow, RowAdapter
from rankwise.lora.offloaded import has_data
from rankwise.lora.trained_modules import activate_trained, check_one_trained, replacement_tensors, trained_modules
from rankwise.lora.variants import form_name


@changes_model
def activate(model: nn.Module, *names: str) -> None:
    """Choose the active adapters, whose updates are added up. Without names none is active.

    The choice applies to all threads.

    Args:
        model: An injected model.
        names: Adapters of this model.

    Raises:
        AdapterError: A name is not an adapter's, adapters are merged, this is inside `by_row`, or another thread is
            in a forward pass of the model, or inside `by_row` or `disabled`.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1), "first"), inject(layer, LoRAConfig(r=1), "second")
        >>> activate(layer, "first", "second")
        >>> layer.lora.active
        ('first', 'second')
    """
    for name in names:
        layers_with(model, name)
    layers = adapted_layers(model)
    _refuse_merged(layers, "activate")
    check_one_trained(model, names)
    activate_trained(model, names)
    for _, lora in layers.values():
        lora.switch(tuple(name for name in dict.fromkeys(names) if name in lora.scale))


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Make the model compute as its base does inside a `with` block.

    A copy of the model made inside the block has active adapters, as outside.

    Args:
        model: An injected model.

    Raises:
        AdapterError: Adapters are merged, so the base's weights are not there; or another thread uses the model in
            such a block, or does so inside this one.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> with disabled(layer):
        ...     layer.lora.disabled
        True
    """
    layers = adapted_layers(model)
    _refuse_merged(layers, "disabled")
    parts = [lora for _, lora in layers.values()] + [trained for _, trained in trained_modules(model).values()]
    with held_by_thread(model, "disabled"):
        before = [(part, part.disabled) for part in parts]
        for lora, _ in before:
            lora.disabled = True
        try:
            yield
        finally:
            for lora, was in before:
                lora.disabled = was


def _refuse_merged(layers: Mapping[str, tuple[nn.Module, LoRA]], what: str) -> None:
    for path, (_, lora) in layers.items():
        if lora.merged:
            raise AdapterError(f'"{path}" holds a merged adapter, which {what} doesn\'t affect; call unmerge first.')


@changes_model
def rename(model: nn.Module, old: str, new: str) -> None:
    """Rename an adapter. Its parameters stay the same objects, so optimisers keep working.

    Args:
        model: An injected model.
        old: The adapter.
        new: Its new name.

    Raises:
        AdapterError: There is no such adapter, the new name is taken or can't be one, adapters are merged, or the model
            is in use inside `by_row`.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1), "first")
        >>> rename(layer, "first", "french")
        >>> layer.lora.active
        ('french',)
    """
    layers = layers_with(model, old)
    check_new_name(model, new)
    for path, (_, lora) in layers.items():
        if not all(map(has_data, lora.keys_of(old).values())):
            raise AdapterError(
                f'The numbers of "{old}" at "{path}" are elsewhere (accelerate has offloaded the model, or it is on '
                "the meta device), under its present name. Rename it before offloading."
            )
    stop_counting(model)  # it would look for the adapter by its old name
    for _, lora in layers.values():
        _rename(lora, old, new)
    for _, trained in trained_modules(model).values():
        if old in trained.own:
            trained.own[new] = trained.own.pop(old)
            if old in trained.parked:
                trained.parked[new] = trained.parked.pop(old)
            trained.active = new if trained.active == old else trained.active


def _rename(lora: LoRA, old: str, new: str) -> None:
    for key in lora.parameters_of(old):
        held = lora.get_submodule(key)._parameters  # pyright: ignore[reportPrivateUsage]
        held[new] = held.pop(old)
    lora.scale[new], lora.configs[new] = lora.scale.pop(old), lora.configs.pop(old)
    lora.kinds = {new if name == old else name: kind for name, kind in lora.kinds.items()}
    lora.active = tuple(new if name == old else name for name in lora.active)
    lora.joined = {new if name == old else name: source for name, source in lora.joined.items()}
    lora.parked = {new if name == old else name: keys for name, keys in lora.parked.items()}
    lora.attached = {new if name == old else name: it for name, it in lora.attached.items()}
    lora.flipped = tuple(new if name == old else name for name in lora.flipped)


@contextmanager
def by_row(model: nn.Module, names: Sequence[str | None], *, example: Any = None) -> Generator[None]:
    """Send each row of a batch through its own adapter inside a `with` block, for inference.

    All rows go through a layer at once. Every adapter among them is copied into stacks at the beginning, and again
    where its numbers have changed by the next call of the layer (but not through `.data`).

    Args:
        model: An injected model in eval mode.
        names: The adapter of each row of the batch; None for the base alone.
        example: A batch with this many rows. The model then runs once by row and once with each adapter;
            comparing them finds models whose layers don't have rows as the first dimension.

    Raises:
        AdapterError: A name is not an adapter's; the model is in training mode or merged; an adapter trains
            parameters in full, or adapts a weight that is read without a call: those are the same for all rows; the
            comparison failed; or another thread uses the model in such a block, or does so inside this one.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2).eval()
        >>> _ = inject(layer, LoRAConfig(r=1), "french"), inject(layer, LoRAConfig(r=2), "german")
        >>> with torch.no_grad(), by_row(layer, ["german", None, "french"]):
        ...     layer(torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """
    chosen = [name for name in dict.fromkeys(names) if name is not None]
    layers = adapted_layers(model)
    _refuse_merged(layers, "by_row")
    _check_by_row(model, chosen, len(names))
    if example is not None:
        _compare(model, names, example)
    with held_by_thread(model, "by_row"):
        before = [(lora, lora.by_row) for _, lora in layers.values()]
        disabled_before = [(trained, trained.disabled) for _, trained in trained_modules(model).values()]
        try:
            for _, lora in layers.values():
                lora.by_row = _rows_of(lora, [name for name in chosen if name in lora.scale], names)
            for trained, _ in disabled_before:
                trained.disabled = True
            yield
        finally:
            for lora, rows in before:
                lora.by_row = rows
            for trained, was in disabled_before:
                trained.disabled = was


def _rows_of(lora: LoRA, own: Sequence[str], names: Sequence[str | None]) -> ByRow:
    """A layer's adapters by row; `own` are those among them that the layer has."""
    held = [(lora.get_submodule(key)._parameters, name) for name in own for key in lora.parameters_of(name)]  # pyright: ignore[reportPrivateUsage]
    return ByRow(lambda: {name: _member(lora, name) for name in own}, names, held)


def _member(lora: LoRA, name: str) -> RowAdapter:
    variant = form_name(lora.configs[name], lora.kind_of(name))
    return variant, lora.kind_of(name), lora.tensors(name), lora.scale[name]


def _check_by_row(model: nn.Module, chosen: Iterable[str], n_rows: int) -> None:
    if not n_rows:
        raise AdapterError("by_row got no names; give one for each row of the batch, or None.")
    if model.training:
        raise AdapterError("by_row is for inference, and the model is in training mode; call model.eval() first.")
    for name in chosen:
        for path, (_, lora) in layers_with(model, name).items():
            if lora.has_reader:
                raise AdapterError(
                    f'The weight of "{path}" is read without a call, once for all rows, so adapter "{name}" can\'t act '
                    "on some of them. Activate one adapter at a time."
                )
        if trained := next(iter(replacement_tensors(model, name)), None):
            raise AdapterError(
                f'Adapter "{name}" trains "{trained}" in full, for all rows alike. Activate one adapter at a time.'
            )


def _compare(model: nn.Module, names: Sequence[str | None], example: Any) -> None:
    """Raise unless every row's output equals that of its adapter alone."""
    with torch.no_grad():
        with by_row(model, names):
            found = _tensors(call(model, example))
        active = {name for _, lora in adapted_layers(model).values() for name in lora.active}
        for name in dict.fromkeys(names):
            activate(model, *([] if name is None else [name]))
            alone = _tensors(call(model, example))
            activate(model, *active)
            mine = torch.tensor([other == name for other in names])
            for one, other in zip(found, alone, strict=True):
                if (
                    one.ndim
                    and one.shape[0] == len(names)
                    and not torch.allclose(one[mine], other[mine], rtol=1e-3, atol=1e-3 * float(other.abs().max()))
                ):
                    raise AdapterError(
                        f'Rows of adapter "{name}" differ by row from those with it alone: some layer of the '
                        f"{type(model).__name__} doesn't have the rows first. Activate one adapter at a time."
                    )


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
