"""Replacement forwards of adapted layers, and of the blocks at which the rows of a pack branch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankwise.pack.groups import Groups
from rankwise.pack.layers.choose import PackedLayer, called_without_rows
from rankwise.pack.model.comparing import CannotJoin
from rankwise.pack.model.trace import Branch, argument_form, has_no_rows
from rankwise.pack.noise.forwards import Forward
from rankwise.pack.noise.keyed import Noise


class NewArguments(CannotJoin):
    """A block is called with arguments that no earlier pass had: the branch point is looked for again."""

    def __str__(self) -> str:
        return "a block has arguments of a new form"


@dataclass
class Passing:
    """The state of the present forward pass.

    Args:
        groups: Which adapter reads which batch.
        rows: Rows of each batch.
    """

    groups: Groups
    rows: int


def packed_forward(
    name: str,
    now: Callable[[], Passing],
    layer_of: Callable[[str], PackedLayer],
    branch: Branch,
    without_rows: Mapping[str, torch.Size],
    noise: Noise | None,
) -> Forward:
    """The forward of an adapted layer in a pack.

    Args:
        name: The layer's path.
        now: What passes.
        layer_of: The layer as it runs in the pack; looked up at every call, as adapters that leave leave its layers.
        branch: Where the rows part.
        without_rows: Layers whose input has no rows, with its shape.
        noise: Of the adapters' dropout; None in eval mode.
    """
    shared = branch.inside and branch.name == name

    def call(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        layer, of = layer_of(name), now()
        k = len(of.groups.batch_of)
        if has_no_rows(x, without_rows.get(name), k * of.rows):
            return called_without_rows(layer, x, of.groups, of.rows, noise, *rest, **named)
        if x.shape[0] % ((of.groups.n_batches if shared else k) * of.rows):
            raise CannotJoin(f'"{name}" gets a part of the rows')
        return layer(x, of.groups, shared, noise, *rest, **named)

    return call


def parting(now: Callable[[], Passing], branch: Branch) -> Callable[[str, Forward], Forward]:
    """The wrapper for `replaced_forwards` of the blocks at which one copy of the rows for each batch becomes one for
    each adapter; arguments as for `packed_forward`."""
    return lambda name, forward: _parting_forward(name, forward, now, branch)


def _parting_forward(name: str, forward: Forward, now: Callable[[], Passing], branch: Branch) -> Forward:
    """The forward of one of them."""
    places, form = branch.blocks[name], branch.forms[name]

    def call(*args: Any, **kwargs: Any) -> Any:
        of = now()
        n = of.groups.n_batches
        if n != len(of.groups.batch_of):
            flat, spec = tree_flatten((args, kwargs))
            if argument_form(args, kwargs, flat) != form:
                raise NewArguments
            for i, t in enumerate(flat):
                if not isinstance(t, Tensor):
                    continue
                # transformers makes no mask for a batch without gaps.
                if i not in places:
                    raise NewArguments
                if places[i] and t.shape[0] == places[i] * n * of.rows:
                    flat[i] = of.groups.fan_out(t.unflatten(0, (n, -1))).flatten(0, 1)
            args, kwargs = tree_unflatten(flat, spec)
        return forward(*args, **kwargs)

    return call
