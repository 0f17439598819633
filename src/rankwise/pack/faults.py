"""A user's function that raises on the outputs of some adapters ends these, and not the others."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rankwise.errors import RankwiseError
from rankwise.pack.batches import Batch
from rankwise.pack.groups import Groups
from rankwise.pack.memory import ran_out

Values = tuple[Tensor, Tensor | None]
"""Values with the adapters first, and what to divide them by, if anything."""

Function = Callable[[Tensor, Batch, Groups], Values]
Result = TypeVar("Result")


def on_each(
    function: Function, outputs: Tensor, batch: Batch, groups: Groups, width: tuple[int, ...]
) -> tuple[Values, dict[int, Exception]]:
    """A function of all adapters at once; where it raises, of one after another.

    Args:
        function: The function.
        outputs: (K, rows, ...).
        batch: The step's batches; every tensor (G, rows, ...).
        groups: Which batch each adapter reads.
        width: The shape of an adapter's values, where the function returns none for any.

    Returns:
        Its values, NaN for adapters on which it raises, and what it raised there.

    Raises:
        Exception: It raises on all of several adapters although the outputs of one are finite: that is no fault of an
            adapter, or one that can't be named.
    """
    at_once = attempted(lambda: function(outputs, batch, groups))
    if not isinstance(at_once, Exception):
        return at_once, {}
    found: dict[int, Values] = {}
    errors: dict[int, Exception] = {}
    for k, g in enumerate(groups.batch_of):
        one = Groups([g], groups.n_batches, outputs.device)
        got = attempted(lambda k=k, one=one: function(outputs[k : k + 1], batch, one))
        if isinstance(got, Exception):
            errors[k] = got
        else:
            found[k] = got
    sound = [k for k in errors if bool(outputs[k].isfinite().all())]
    if sound and len(errors) == len(outputs) > 1:
        raise errors[sound[0]]
    form, divisor = next(iter(found.values()), (outputs.new_empty((1, *width)), None))

    def nothing(k: int) -> Values:
        # Made of the outputs: a loss without a graph would be refused.
        nan = outputs[k].sum() * torch.nan
        return nan.to(form.dtype).expand(form.shape), None if divisor is None else torch.ones_like(divisor)

    values, divisors = zip(*(found.get(k) or nothing(k) for k in range(len(outputs))), strict=True)
    return (torch.cat(values), None if divisor is None else torch.cat(divisors)), errors


def attempted(function: Callable[[], Result]) -> Result | Exception:
    """Call something that calls a user's function; return what it raises there, whatever that is.

    Raises:
        RankwiseError: A refusal of ours.
        MemoryError: Memory ran out, on a device too (`RuntimeError`).
        AcceleratorError: A device failed, which may come to light anywhere.
    """
    try:
        return function()
    except Exception as error:
        if isinstance(error, RankwiseError | torch.AcceleratorError) or ran_out(error):
            raise
        return error


def in_words(what: str, error: Exception) -> str:
    """Describe an error of a user's function in a line, with the place in the user's file.

    Examples:
        >>> in_words("metric", ValueError("Input contains NaN."))
        'the metric raised ValueError: Input contains NaN'
    """
    said = " ".join(str(error).split())[:200].rstrip(".")
    ours = Path(__file__).parents[1]
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    users = [
        (path.name, line) for path, line in frames if ours not in path.parents and "site-packages" not in path.parts
    ]
    place = f" ({users[-1][0]}, line {users[-1][1]})" if users else ""
    return f"the {what} raised {type(error).__name__}{f': {said}' if said else ''}{place}"
