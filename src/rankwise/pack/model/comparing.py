"""A pack compared with its adapters alone: outputs, and in train mode gradients."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.memory import ran_out
from rankwise.pack.model.probe import same
from rankwise.pack.stacks.store import Store
from rankwise.streams import stream


class CannotJoin(Exception):  # noqa: N818  (no error: what runs as a pack runs one adapter after another)
    """A forward pass can't be that of a pack: a layer is called on a part of the rows, say."""


RunAlone = Callable[[int, Callable[[Tensor], object]], Tensor]
"""Runs the adapter at a place alone, and calls a function with its outputs."""


def difference(
    store: Store,
    names: Sequence[str],
    *,
    as_pack: AbstractContextManager[object],
    together: Callable[[], Tensor],
    backward: Callable[[Tensor], None],
    as_turns: AbstractContextManager[object],
    one: RunAlone,
    collect: Callable[[], None],
    gradients: bool,
    dtype: torch.dtype,
) -> str:
    """Why a pack isn't its adapters alone; empty where it is.

    Args:
        store: The pack's numbers.
        names: Of its adapters.
        as_pack, as_turns: In which the model runs as a pack, or with one adapter.
        together: Outputs (K, rows, ...) of the pack.
        backward: Adds the gradients of each adapter's number (K,) to the store.
        one: Runs one adapter.
        collect: Adds the gradients that `one` has left to the store.
        gradients: Whether gradients are compared.
        dtype: What the model computes in.
    """
    with torch.set_grad_enabled(gradients):
        try:
            with as_pack:
                store.begin()
                ours = together()
                weights = torch.rand(ours.shape[1:], generator=stream("probe", "weights")).to(ours)
                if gradients and ours.requires_grad:
                    backward((ours * weights).flatten(1).sum(1))
                store.finish()
                of_pack = store.grads.clone()
        except (RuntimeError, ValueError, IndexError, TypeError, PackError, CannotJoin) as error:
            if ran_out(error):
                raise  # no fault of the model's
            return "the model can't compute the rows of all of them in one forward pass"

        def then(outputs: Tensor) -> None:
            if gradients and outputs.requires_grad:
                (outputs * weights).sum().backward()

        with as_turns:
            store.begin()
            for k, name in enumerate(names):
                theirs = one(k, then)
                if not same(ours[k].detach(), theirs.detach(), dtype):
                    return f'the outputs of "{name}" in the pack differ from its own'
            collect()
            store.finish()
    apart, size = store.norms(of_pack - store.grads), store.norms(store.grads)
    if gradients and not bool((apart <= 1e4 * torch.finfo(dtype).eps * size).all()):
        return "the gradients in the pack differ from those of its adapters alone"
    return ""
