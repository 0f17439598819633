"""A check before the first step: no row of a batch may depend on the others."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from rankwise.errors import PackError
from rankwise.pack.memory import ran_out
from rankwise.pack.noise.forwards import Forward, replaced_forwards

Seen = list[tuple[str, list[Tensor], list[Tensor]]]
"""Every call of a module, in the order in which they end: its name, tensors that went in, tensors that came out."""


def refuse_mixed_rows(
    model: nn.Module, run: Callable[[Sequence[int]], Tensor], rows: int = 2, fewer: int | None = None, when: str = ""
) -> None:
    """Raise where an output depends on other rows of its batch, and name the module that mixes them.

    Args:
        model: In the mode in which it is looked at, its noise silent.
        run: Runs it on these rows of an example.
        rows: How many rows pass at once.
        fewer: How many it is looked at where the model can't run on so many: those of one batch.
        when: In which mode, for the message.

    Raises:
        PackError: The model mixes rows.
    """
    together, rows = _as_many_as_run(run, [rows, fewer or rows])
    for part in ([0], [1]):
        alone = _alone(model, run, part, rows, when)
        if together.shape[0] != rows * alone.shape[0]:
            raise PackError(
                f"The model gave outputs of shape {tuple(together.shape)} for {rows} rows and {tuple(alone.shape)} for "
                "1; packs need outputs with the rows of the batch first."
            )
        if not _as_together(model, together, alone, part, rows):
            _refuse(_mixing(model, run, part, [i for i in range(rows) if i not in part]), when)
    # Other neighbours, in other places; and rows that are alike fill what has room for some only: an expert, say.
    others = [*[0] * (rows - rows // 4), *reversed(range(rows - rows // 4, rows))]
    if not _as_together(model, together, _alone(model, run, others, rows, when), others, rows):
        _refuse(place_of(model, differing(model, lambda: run(others), lambda: run([0]))), when)


def _as_together(model: nn.Module, together: Tensor, outputs: Tensor, rows: Sequence[int], n: int) -> bool:
    """Whether the outputs of these rows are what they are among all n rows."""
    made = together.shape[0] // n
    expected = together.unflatten(0, (n, made))[list(rows)].flatten(0, 1)
    return same(expected, outputs, coarsest(model))


def _refuse(where: str, when: str) -> None:
    raise PackError(
        f"A row's output depends on the other rows of its batch: {when}they are mixed in {where}. In a pack "
        "the rows of all adapters pass through the model together, so each row must be computed on its own."
    )


def _as_many_as_run(run: Callable[[Sequence[int]], Tensor], numbers: Sequence[int]) -> tuple[Tensor, int]:
    """The outputs of the first of these numbers of rows that the model can run on, and the number."""
    for rows in numbers[:-1]:
        try:
            return run(list(range(rows))), rows
        except (RuntimeError, ValueError, IndexError) as error:
            if ran_out(error):
                raise
    return run(list(range(numbers[-1]))), numbers[-1]


def _alone(
    model: nn.Module, run: Callable[[Sequence[int]], Tensor], part: Sequence[int], rows: int, when: str
) -> Tensor:
    """The outputs of a part of the rows that can be computed together."""
    try:
        return run(part)
    except (RuntimeError, ValueError, IndexError) as error:
        if ran_out(error):
            raise
        where = place_of(model, failing(model, lambda: run(part)))
        raise PackError(
            f"The model computes {rows} rows together, and {'one' if len(part) == 1 else len(part)} alone not, in "
            f"{where}: {when}it mixes rows, as batch normalisation does. In a pack the rows of all adapters pass "
            "through the model together, so each row must be computed on its own."
        ) from error


def failing(model: nn.Module, run: Callable[[], object]) -> str:
    """The innermost module in which a run fails; "" for the model itself, or where it doesn't fail again."""
    failed: list[str] = []

    def noting(name: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(*args, **kwargs)
            except (RuntimeError, ValueError, IndexError):
                failed.append(name)  # the innermost first
                raise

        return call

    with replaced_forwards(dict(model.named_modules()), noting), suppress(RuntimeError, ValueError, IndexError):
        run()
    return next(iter(failed), "")


def _mixing(
    model: nn.Module, run: Callable[[Sequence[int]], Tensor], part: Sequence[int], others: Sequence[int]
) -> str:
    """Describe where these rows change when other rows follow them."""
    return place_of(model, differing(model, lambda: run([*part, *others]), lambda: run(part)))


def place_of(model: nn.Module, name: str) -> str:
    """A module in words.

    Examples:
        >>> place_of(nn.Linear(2, 2), ""), place_of(nn.Linear(2, 2), "head")
        ("the Linear's own forward", '"head"')
    """
    return f'"{name}"' if name else f"the {type(model).__name__}'s own forward"


def differing(model: nn.Module, one: Callable[[], object], other: Callable[[], object]) -> str:
    """The first module whose inputs in two runs are equal, and its outputs not; of tensors of different lengths, where
    they begin alike. "" for none, or the model itself."""
    two, alone = _watched(model, one), _watched(model, other)
    return next(
        (
            name
            for (name, x2, y2), (_, x1, y1) in zip(two, alone, strict=False)
            if _equal(x2, x1) and not _equal(y2, y1)
        ),
        "",
    )


def coarsest(model: nn.Module) -> torch.dtype:
    """The type of a model's parameters that rounds most."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def same(ours: Tensor, theirs: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether two outputs are equal but for rounding.

    Args:
        ours, theirs: The outputs.
        dtype: What they were computed in, where that rounds more than their own type: a head in float32 over layers in
            bfloat16 makes nothing exact.
    """
    if ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    # Rounding grows through layers: 1,000 times that of one operation. Half precision has not so many to lose: there
    # a fiftieth (float16) or a twentieth of the largest number tells rounding from another row's values.
    eps = max(torch.finfo(kind).eps for kind in (theirs.dtype, dtype or theirs.dtype))
    bound, least = (1000 * eps, 1.0) if 1000 * eps < 0.1 else (max(0.02, 6 * eps), 1e-3)
    finite = theirs.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return False
    difference = (ours - theirs)[finite].abs()
    return difference.numel() == 0 or bool(difference.max() <= bound * theirs[finite].abs().max().clamp(min=least))


def _watched(model: nn.Module, run: Callable[[], object]) -> Seen:
    seen: Seen = []

    def watching(name: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            seen.append((name, _tensors((args, kwargs)), _tensors(output)))
            return output

        return call

    with replaced_forwards(dict(model.named_modules()), watching):
        run()
    return seen


def _tensors(tree: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tree_flatten(tree)[0] if isinstance(t, Tensor)]


def _equal(of_two: list[Tensor], of_one: list[Tensor]) -> bool:
    """Whether the first rows have what they have alone."""
    pairs = zip(of_two, of_one, strict=False)
    return all(same(a[: b.shape[0]] if b.dim() else a, b) for a, b in pairs)
