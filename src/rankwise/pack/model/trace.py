"""Trace a model's forward pass on a few rows: where it draws noise, and where the rows of a pack branch.

The rows part (one batch for each seed becomes one for each adapter) as late as is sure to be right:

- where every ancestor of the first adapted layer is a Sequential, inside that layer;
- else at the entry of the first block (a child of a ModuleList) that holds an adapted layer; later blocks get the
  tensors that still have one copy a batch (masks) repeated too. Which arguments have the rows is seen by running two
  sizes of batch, never guessed;
- else at the model's door.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from rankwise.pack.noise.answers import NoiseMode
from rankwise.pack.noise.forwards import Forward, replaced_forwards
from rankwise.pack.noise.generators import Generators
from rankwise.pack.noise.keyed import dropout_mask, placed

ArgumentForm = str
"""The form of a call's arguments: how many by place, the names of the others, and how many values in all of them."""


@dataclass(frozen=True)
class Branch:
    """The point at which the rows of a pack branch.

    Args:
        name: The layer or block; "" for the model's door.
        inside: Whether they part inside it (a layer), or at its entry (a block).
        before: Modules that run before: their rows are one copy a batch.
        blocks: For the block and those after it, the places of the tensors among its arguments, each with its
            leading length for one row of the batch; 0 for those without rows.
        forms: The forms of their arguments.
    """

    name: str = ""
    inside: bool = False
    before: frozenset[str] = frozenset()
    blocks: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, Mapping[int, int]])
    forms: Mapping[str, ArgumentForm] = field(default_factory=dict[str, ArgumentForm])

    def joined(self, other: "Branch") -> "Branch":
        """A branch that knows the arguments that two passes had; the door where they don't agree."""
        same = (self.name, self.inside, self.blocks.keys()) == (other.name, other.inside, other.blocks.keys())
        if not same or self.forms != other.forms:
            return DOOR
        blocks = {name: {**places, **other.blocks[name]} for name, places in self.blocks.items()}
        agree = all(blocks[name][i] == length for name, places in self.blocks.items() for i, length in places.items())
        return replace(self, blocks=blocks) if agree else DOOR


DOOR = Branch()


@dataclass
class Trace:
    """A forward pass.

    Args:
        rows: How many rows it had.
        outputs: What the model returned.
        order: The modules in the order in which they were entered first.
        entered: All of their calls, in order.
        calls: How often each ran.
        draws: For each whose own forward draws noise that can be answered, the shapes of its draws.
        unanswered: For each whose own forward draws other noise, from which generator.
        shapes: For each, the shapes of the tensors among its first call's arguments, by their place.
        forms: For each, the form of its first call's arguments.
    """

    rows: int
    outputs: Tensor
    order: list[str]
    entered: list[str]
    calls: Counter[str]
    draws: dict[str, list[torch.Size]]
    unanswered: dict[str, str]
    shapes: dict[str, dict[int, torch.Size]]
    forms: dict[str, ArgumentForm]

    @property
    def noisy(self) -> list[str]:
        """Modules whose own forward draws noise."""
        return [*self.draws, *(name for name in self.unanswered if name not in self.draws)]


class Noted:
    """Gives the numbers of draws, and notes which module asked for them.

    Args:
        running: The modules that run now, the innermost last; whoever calls the model keeps it.
        constant: In place of the numbers.
        fixed: In place of the numbers of one draw: (module, which of its draws) -> a number, or None.
    """

    def __init__(
        self,
        running: Sequence[str] = (),
        *,
        constant: float | None = None,
        fixed: Callable[[str, int], float | None] = lambda module, call: None,
    ) -> None:
        self._running, self._constant, self._fixed = running, constant, fixed
        self._generators: dict[torch.device, torch.Generator] = {}
        self.draws: dict[str, list[torch.Size]] = {}

    def numbers(self, shape: torch.Size, like: Tensor | None, **where: Any) -> Tensor:
        module = self._running[-1] if self._running else ""
        draws = self.draws.setdefault(module, [])
        device, dtype = placed(like, where)
        value = self._fixed(module, len(draws))
        value = self._constant if value is None else value
        draws.append(shape)
        if value is not None:
            return torch.full(shape, value, dtype=dtype, device=device)
        generator = self._generators.setdefault(device, torch.Generator(device).manual_seed(0))
        return torch.rand(shape, generator=generator, dtype=dtype, device=device)

    def dropout(self, x: Tensor, p: float, shape: torch.Size) -> Tensor:
        return x * dropout_mask(self.numbers(shape, x.detach()), p, x.dtype)


def trace(
    model: nn.Module,
    run: Callable[[], Any],
    rows: int,
    *,
    constant: float | None = None,
    fixed: Callable[[str, int], float | None] = lambda module, call: None,
) -> Trace:
    """Run a model once and note what it does. All random states are left as they were.

    Args:
        model: The model.
        run: Runs it.
        rows: On how many rows.
        constant, fixed: As `Noted` takes them.
    """
    running: list[str] = []
    noted = Noted(running, constant=constant, fixed=fixed)
    order: list[str] = []
    entered: list[str] = []
    calls: Counter[str] = Counter()
    shapes: dict[str, dict[int, torch.Size]] = {}
    forms: dict[str, ArgumentForm] = {}
    unanswered: dict[str, str] = {}
    generators = Generators(model)

    def look() -> None:
        """Record the running module where a generator has advanced."""
        nonlocal before
        try:
            marks = generators.marks()
        except RuntimeError:
            return  # inside a transformation of torch.func, after which it is looked again
        if marks != before:
            moved = next(what for what, mark in marks.items() if mark != before[what])
            unanswered.setdefault(running[-1] if running else "", moved)
            before = marks

    def noting(name: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            look()
            if name not in calls:
                order.append(name)
                flat, _ = tree_flatten((args, kwargs))
                shapes[name] = {i: t.shape for i, t in enumerate(flat) if isinstance(t, Tensor)}
                forms[name] = argument_form(args, kwargs, flat)
            calls[name] += 1
            entered.append(name)
            running.append(name)
            try:
                result = forward(*args, **kwargs)
                look()
                return result
            finally:
                running.pop()

        return call

    modules = dict(model.named_modules())
    with warnings.catch_warnings(), generators.keyed("trace"), torch.no_grad():
        # Reentrant checkpointing warns that there is nothing to differentiate; here nothing is meant to be.
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        before = generators.marks()
        with replaced_forwards(modules, noting), NoiseMode(noted):
            outputs = run()
        look()
    return Trace(rows, outputs, order, entered, calls, noted.draws, unanswered, shapes, forms)


def argument_form(args: Sequence[Any], kwargs: Mapping[str, Any], flat: Sequence[Any]) -> ArgumentForm:
    """A key that maps flattened arguments back to their places."""
    return f"{len(args)} {' '.join(kwargs)} {len(flat)}"


def rows_dim(one: torch.Size, other: torch.Size, rows: int, more: int) -> int | None:
    """The dimension of a shape that grows with the rows; None where none does.

    Args:
        one: The shape with so many rows.
        other: The shape with more.
        rows: How many.
        more: How many more.

    Raises:
        ValueError: The shapes differ in another way.

    Examples:
        >>> rows_dim(torch.Size([7, 4, 8]), torch.Size([7, 6, 8]), 2, 3)
        1
    """
    if one == other:
        return None
    growing = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    if len(one) != len(other) or len(growing) != 1 or one[growing[0]] * more != other[growing[0]] * rows:
        raise ValueError(f"{tuple(one)} and {tuple(other)} for {rows} and {more} rows")
    if one[growing[0]] % rows:
        raise ValueError(f"{tuple(one)} for {rows} rows")
    return growing[0]


def find_branch(model: nn.Module, adapted: Collection[str], first: Trace, larger: Trace) -> Branch:
    """Find where the rows of a pack branch.

    Args:
        model: The model.
        adapted: The layers that adapters change.
        first: A forward pass of it.
        larger: One on more rows.
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
    arguments = {name: _with_rows(name, first, larger) for name in at_or_after}
    if any(places is None for places in arguments.values()) or not any((arguments[block] or {}).values()):
        return DOOR
    known = {name: places for name, places in arguments.items() if places is not None}
    forms = {name: first.forms[name] for name in known}
    return _sure(Branch(block, before=_before(first, block), blocks=known, forms=forms), first)


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
    """The branch, or the door where it can't be determined which modules run before it."""
    above = set(_ancestors(branch.name))
    twice = any(seen.calls[name] > 1 for name in (branch.name, *branch.blocks))
    # Noise is drawn for one copy of the rows before the branch point and for one an adapter after it.
    after = {*seen.entered[seen.entered.index(branch.name) :]}
    unsure = any(name in above or (name in branch.before and name in after) for name in seen.noisy)
    return DOOR if twice or unsure else branch


def _with_rows(name: str, first: Trace, larger: Trace) -> dict[int, int] | None:
    """The tensors among a module's arguments, with their length for one row; None where that can't be determined."""
    found: dict[int, int] = {}
    some, more = first.shapes[name], larger.shapes.get(name, {})
    if some.keys() != more.keys() or first.forms[name] != larger.forms[name]:
        return None
    for i, shape in some.items():
        try:
            dim = rows_dim(shape, more[i], first.rows, larger.rows)
        except ValueError:
            return None
        if dim is not None and dim > 0:
            return None
        found[i] = 0 if dim is None else shape[0] // first.rows
    return found
