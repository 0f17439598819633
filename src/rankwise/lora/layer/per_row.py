"""Each row of a batch through its own adapter, or through none: grouped products, one for all rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankwise.errors import AdapterError
from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants import FORMS, VariantTensor, VariantTensors


@dataclass(frozen=True)
class StackedAdapters:
    """Stacked adapters of one layer with the same computation.

    Args:
        variant: Their variant.
        kind: The layer type that they see.
        tensors: The variant's tensors, stacked, and padded to the largest r: A (K, r, d_in), B (K, d_out, r) times
            the scales.
        index: Index of each row's adapter in the stack.
        acts: Whether each row's adapter is in this group.
    """

    variant: str
    kind: LayerType
    tensors: VariantTensors
    index: Tensor
    acts: Tensor


RowAdapter = tuple[str, LayerType, VariantTensors, float]
"""Variant, layer type, tensors and scale of one adapter."""


class ByRow:
    """The adapters of a batch's rows in one layer: stacked, and stacked again when their values change.

    Args:
        members: Returns each adapter's tensors in this layer, as they are now.
        rows: Adapter of each row, as `group_adapters` takes it.
        held: Where the layer holds a parameter of these adapters: a dictionary, and its key there.
    """

    def __init__(
        self,
        members: Callable[[], Mapping[str, RowAdapter]],
        rows: Sequence[str | None],
        held: Sequence[tuple[Mapping[str, Tensor | None], str]],
    ) -> None:
        self._members, self._rows, self._held = members, rows, held
        self._stack()

    def groups(self) -> tuple[StackedAdapters, ...]:
        """The stacks, with the adapters' present values."""
        if not torch.compiler.is_compiling() and self._marks() != self._stacked:
            self._stack()
        return self._groups

    def _stack(self) -> None:
        self._stacked = self._marks()
        with torch.no_grad():
            self._groups = group_adapters(self._members(), self._rows)

    def _marks(self) -> list[tuple[int, int]]:
        """A key that changes when a parameter is replaced, or written to without `.data`."""
        tensors = [held.get(name) for held, name in self._held]
        return [(id(t), -1 if t is None or t.is_inference() else t._version) for t in tensors]


def group_adapters(members: Mapping[str, RowAdapter], rows: Sequence[str | None]) -> tuple[StackedAdapters, ...]:
    """Stack the adapters of a layer.

    Args:
        members: Adapter -> its tensors in this layer.
        rows: Adapter of each row; None, or an adapter that the layer lacks, leaves the row as the base's.
    """
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for name, (variant, kind, tensors, _) in members.items():
        # A and B of slices lie slice after slice, so they can't be padded at the end; single rows belong to tokens.
        shapes = tuple(tensor.shape for tensor in tensors.values()) if kind.partial else ()
        kinds.setdefault((variant, kind.slices, kind.tokens, shapes), []).append(name)
    return tuple(_group({name: members[name] for name in names}, rows) for names in kinds.values())


def _group(members: Mapping[str, RowAdapter], rows: Sequence[str | None]) -> StackedAdapters:
    variant, kind, *_ = next(iter(members.values()))
    stacks = {declared.name: _stacked(declared, members.values()) for declared in FORMS[variant].tensors}
    device = next(iter(stacks.values())).device
    places = {name: place for place, name in enumerate(members)}
    return StackedAdapters(
        variant=variant,
        kind=kind,
        tensors=stacks,
        index=torch.tensor([places.get(name or "", 0) for name in rows], device=device),
        acts=torch.tensor([name in places for name in rows], device=device),
    )


def _stacked(declared: VariantTensor, members: Iterable[RowAdapter]) -> Tensor:
    """The tensors of one name, each padded to the largest rank, and scaled where the variant says so."""
    found = [
        tensors[declared.name] * scale if declared.up else tensors[declared.name] for _, _, tensors, scale in members
    ]
    dim = declared.rank_dim
    if dim is None:
        return torch.stack(found)
    most = max(tensor.shape[dim] for tensor in found)
    after = [0, 0] * (found[0].ndim - 1 - dim)
    return torch.stack([pad(tensor, (*after, 0, most - tensor.shape[dim]), value=declared.pad) for tensor in found])


def add_by_row(
    groups: Sequence[StackedAdapters],
    layer: Any,
    x: Tensor,
    output: Tensor,
    rest: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Tensor:
    """Return the layer's output with the update of each row's own adapter added.

    A layer may see several rows for each of the batch (places of a sequence laid flat, windows of an image, beams);
    those of one row of the batch must then lie one after another.
    """
    for group in groups:
        n_rows = group.index.shape[0]
        if x.shape[0] % n_rows or output.shape[0] != x.shape[0]:
            raise AdapterError(
                f"A {type(layer).__name__} got an input of shape {tuple(x.shape)}; its first dimension must be the "
                f"{n_rows} rows that were given adapters, or a multiple. Give every row of the batch one "
                "(or None), and leave out of the adapters what doesn't see rows, such as an embedding of positions."
            )
        forward = FORMS[group.variant].forward

        def one_row(x: Tensor, y: Tensor, tensors: Any, group: StackedAdapters = group, forward: Any = forward):
            return forward(group.kind, layer, x, y, tensors, 1.0, rest, named)

        inputs = x if group.kind.reads_indices else x.to(next(iter(group.tensors.values())).dtype)
        added = torch.vmap(one_row)(
            inputs.unflatten(0, (n_rows, -1)),
            output.unflatten(0, (n_rows, -1)),
            {key: tensor[group.index] for key, tensor in group.tensors.items()},
        )
        acts = group.acts.view(n_rows, *[1] * (added.ndim - 1))
        # Chosen, not multiplied by zero: a row without an adapter keeps the base's bits.
        output = torch.where(
            acts, output.unflatten(0, (n_rows, -1)) + added.to(output.dtype), output.unflatten(0, (n_rows, -1))
        ).flatten(0, 1)
    return output
