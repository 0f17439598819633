"""What a model does in a forward pass, found by running it on a few rows: where it draws noise, where the rows part.

The rows part (one batch for each seed becomes one for each adapter) as late as is sure to be right:

- where every ancestor of the first adapted layer is a Sequential, inside that layer;
- else at the entry of the first block (a child of a ModuleList) that holds an adapted layer; later blocks get the
  tensors that still have one copy a batch (masks) repeated too. Which arguments have the rows is seen by running two
  sizes of batch, never guessed;
- else at the model's door.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from rankwise.pack.forwards import Forward, replaced_forwards
from rankwise.pack.noise import NoiseSeen


@dataclass(frozen=True)
class Branch:
    """Where the rows part.

    Args:
        name: The layer or block; "" for the model's door.
        inside: Whether they part inside it (a layer), or at its entry (a block).
        before: Modules that run before: their rows are one copy a batch.
        blocks: For the block and those after it, the places of the arguments with rows, each with its
            leading length for one row of the batch.
    """

    name: str = ""
    inside: bool = False
    before: frozenset[str] = frozenset()
    blocks: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, Mapping[int, int]])


DOOR = Branch()


@dataclass
class Trace:
    """A forward pass.

    Args:
        order: The modules in the order in which they were entered first.
        entered: All of their calls, in order.
        calls: How often each ran.
        noisy: Those whose own forward draws noise.
        shapes: For each, the shapes of the tensors among its first call's arguments, by their place.
    """

    order: list[str]
    entered: list[str]
    calls: Counter[str]
    noisy: list[str]
    shapes: dict[str, dict[int, torch.Size]]


def trace(model: nn.Module, run: Callable[[], object]) -> Trace:
    """Run a model once and note what it does. Torch's own random state is left as it was.

    Raises:
        PackError: The model draws random numbers that can't be keyed.
    """
    running: list[str] = []
    order: list[str] = []
    entered: list[str] = []
    calls: Counter[str] = Counter()
    shapes: dict[str, dict[int, torch.Size]] = {}

    def noting(name: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in calls:
                order.append(name)
                flat, _ = tree_flatten((args, kwargs))
                shapes[name] = {i: t.shape for i, t in enumerate(flat) if isinstance(t, Tensor)}
            calls[name] += 1
            entered.append(name)
            running.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                running.pop()

        return call

    seen = NoiseSeen(running)
    devices = list({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    modules = dict(model.named_modules())
    with warnings.catch_warnings(), torch.random.fork_rng(devices=devices), torch.no_grad():
        # Reentrant checkpointing warns that there is nothing to differentiate; here nothing is meant to be.
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        with replaced_forwards(modules, noting), seen:
            run()
    return Trace(order, entered, calls, list(seen.noisy), shapes)


def find_branch(model: nn.Module, adapted: Collection[str], first: Trace, larger: Trace) -> Branch:
    """Where the rows of a pack part.

    Args:
        model: The model.
        adapted: The layers that adapters change.
        first: A forward pass of it on two rows.
        larger: One on three rows.
    """
    layers = [name for name in first.order if name in adapted]
    if not layers:
        return DOOR
    path = _ancestors(layers[0])
    if all(type(model.get_submodule(a)) is nn.Sequential for a in path):
        return _sure(Branch(layers[0], inside=True, before=_before(first, layers[0])), first)
    blocks = _outer_blocks(model)
    block = next((name for name in (*path, layers[0]) if name in blocks), None)
    if block is None:
        return DOOR
    at_or_after = [name for name in first.order[first.order.index(block) :] if name in blocks]
    arguments = {name: _with_rows(first.shapes[name], larger.shapes.get(name, {})) for name in at_or_after}
    if any(places is None for places in arguments.values()) or not arguments[block]:
        return DOOR
    known = {name: places for name, places in arguments.items() if places is not None}
    return _sure(Branch(block, before=_before(first, block), blocks=known), first)


def find_without_rows(first: Trace, larger: Trace) -> dict[str, torch.Size]:
    """The modules whose input doesn't have the batch's rows, such as an embedding of positions; and its shape.

    Args:
        first: A forward pass of the model on two rows.
        larger: One on three rows.
    """
    return {
        name: shapes[0]
        for name, shapes in first.shapes.items()
        if 0 in shapes and shapes[0] == larger.shapes.get(name, {}).get(0)
    }


def has_no_rows(x: Tensor, seen: torch.Size | None, rows: int) -> bool:
    """Whether a module's input has none of the batch's rows now.

    Args:
        x: The input.
        seen: Its shape in `find_without_rows`; None where it had rows there.
        rows: Rows of all adapters. After a layer whose input has none, the input has them: each adapter's own values.

    Examples:
        >>> has_no_rows(torch.ones(1, 9), torch.Size([1, 5]), 6), has_no_rows(torch.ones(6, 9), torch.Size([1, 9]), 6)
        (True, False)
    """
    return seen is not None and x.dim() == len(seen) and (seen[0] != 1 or x.shape[0] == 1 or x.shape[0] != rows)


def _ancestors(name: str) -> list[str]:
    """The paths above a module, the model ("") first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def _outer_blocks(model: nn.Module) -> set[str]:
    """Children of ModuleLists that lie in no other such child."""
    blocks: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(a in blocks for a in _ancestors(f"{name}.")):
            blocks.update(f"{name}.{child}" for child, _ in module.named_children())
    return blocks


def _before(seen: Trace, branch: str) -> frozenset[str]:
    """Modules that have run to their end when the branch point is entered."""
    above = set(_ancestors(branch))
    return frozenset(name for name in seen.order[: seen.order.index(branch)] if name not in above)


def _sure(branch: Branch, seen: Trace) -> Branch:
    """The branch, or the door where it can't be told which modules run before it."""
    above = set(_ancestors(branch.name))
    twice = any(seen.calls[name] > 1 for name in (branch.name, *branch.blocks))
    # Noise is drawn for one copy of the rows before the branch point and for one an adapter after it.
    after = {*seen.entered[seen.entered.index(branch.name) :]}
    unsure = any(name in above or (name in branch.before and name in after) for name in seen.noisy)
    return DOOR if twice or unsure else branch


def _with_rows(two: Mapping[int, torch.Size], three: Mapping[int, torch.Size]) -> dict[int, int] | None:
    """The arguments that have the batch's rows, with their length for one row; None where that can't be told."""
    found: dict[int, int] = {}
    if two.keys() != three.keys():
        return None
    for i, shape in two.items():
        other = three[i]
        if shape == other:
            continue
        grows_only_first = len(shape) > 0 and len(shape) == len(other) and shape[1:] == other[1:]
        if not grows_only_first or shape[0] % 2 or shape[0] // 2 * 3 != other[0]:
            return None
        found[i] = shape[0] // 2
    return found
