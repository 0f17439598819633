"""Noise that depends on what it is for, not on when it is drawn.

The numbers of a row are keyed on (seed, module path, call number in this forward pass, optimiser step)
and the row's place in the whole batch of the step. Adapters of one seed get the same uniform numbers u; dropout keeps
an element where u >= p. So an adapter meets the same masks alone, in any pack and after any split of a pack.

The model's own noise (of the base) is caught where it happens: `pack.model.trace` finds the modules whose forward
draws it and which dimension of each draw has the rows, and while such a module runs, `NoiseMode` answers its calls.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.groups import Groups
from rankwise.pack.noise.answers import NoiseMode
from rankwise.pack.noise.forwards import Forward
from rankwise.pack.noise.uniform import CoarseNumbers, uniform


class Draws(NamedTuple):
    """The key of a forward pass's noise, in addition to the module.

    Args:
        seeds: The seed of each batch.
        step: The optimiser's step.
        first: Place in the whole batch of the first row that passes.
        rows: How many pass; None where all do.
        total: Rows of the whole batch; None where all pass.
    """

    seeds: Sequence[int]
    step: int
    first: int = 0
    rows: int | None = None
    total: int | None = None


class Noise:
    """The draws of one pack. `begin` says for which batches and rows."""

    def __init__(self) -> None:
        self._draws = Draws((), 0)
        self._calls: dict[str, int] = {}
        self._again = False
        self._groups: Groups | None = None
        self._coarse = CoarseNumbers()
        self.before: Collection[str] = ()
        """Modules that run before the branch point, where the rows are one copy a batch; the pack sets it."""
        self.dims: Mapping[str, Sequence[int | None]] = {}
        """For each call of a module: the dimension of its draw that has the rows, or None where none has. A module that
        isn't listed has them first."""

    def begin(self, groups: Groups, draws: Draws) -> None:
        """Start a forward pass: from here on calls are numbered from zero.

        Args:
            groups: Which adapter reads which batch.
            draws: What the numbers are keyed on.
        """
        self._groups, self._draws = groups, draws
        self._calls.clear()
        self._again = False

    def backward(self) -> None:
        """Start the backward pass: what runs forward again now (gradient checkpointing) gets the same masks."""
        self._again = True

    def _number(self, module: str) -> int:
        """The number of this call of the module in the forward pass."""
        calls = self._calls.get(module, 0)
        if not self._again:
            self._calls[module] = calls + 1
            return calls
        if calls > 1:
            raise PackError(
                f'"{module}" runs {calls} times in a forward pass and draws noise; with gradient '
                "checkpointing its calls can't be distinguished. Switch checkpointing or the model's dropout off."
            )
        return 0

    def _dim(self, module: str, call: int) -> int | None:
        """The row dimension of a draw."""
        dims = self.dims.get(module, (0,))
        return dims[min(call, len(dims) - 1)]

    def _draw(
        self, module: str, shape: Sequence[int], device: torch.device, *, coarse: bool = False
    ) -> tuple[Tensor, int | None, int]:
        """The numbers of one draw.

        Args:
            module: The path that they are keyed on.
            shape: Of the draw, with the rows of all batches or adapters that pass.
            device: Where they are drawn.
            coarse: As for `uniform`.

        Returns:
            u for each batch, the rows first: (G, rows, ...); the dimension that the rows have in the draw; and how
            many times the rows are there: G before the branch point, K after it. Of a draw without rows u has the
            draw's own shape.
        """
        groups, of = self._groups, self._draws
        if groups is None:
            raise PackError(f'"{module}" drew noise outside a step of the pack.')
        call = self._number(module)
        dim = self._dim(module, call)
        if dim is None:
            # Of several seeds only where nothing depends on it.
            total = shape[0] if shape else 1
            u = self._uniform(of.seeds[:1], (module, call), slice(0, total), total, shape[1:], device, coarse=coarse)
            return u.view(tuple(shape)), None, 1
        n = groups.n_batches if module in self.before else len(groups.batch_of)
        if shape[dim] % n:
            raise PackError(f'"{module}" draws noise of shape {tuple(shape)}, without the rows of the batch.')
        rows = shape[dim] // n
        # Of each of the batch's rows a module may have made several, its tokens, say: they lie side by side.
        made = 1 if of.rows is None else rows // of.rows
        if of.rows is not None and made * of.rows != rows:
            raise PackError(
                f'Dropout in "{module}" has {rows} rows, and {of.rows} of the batch pass: not the same number of each. '
                "Let whole batches pass (no rows_a_pass), or switch the dropout off."
            )
        own = slice(of.first * made, of.first * made + rows)
        total = rows if of.total is None else of.total * made
        rest = [*shape[:dim], *shape[dim + 1 :]]
        return self._uniform(of.seeds, (module, call), own, total, rest, device, coarse=coarse), dim, n

    def _uniform(
        self,
        seeds: Sequence[int],
        call: tuple[str, int],
        rows: slice,
        total: int,
        shape: Sequence[int],
        device: torch.device,
        *,
        coarse: bool,
    ) -> Tensor:
        """The numbers of these seeds in this step, (G, rows, ...), for a module's call; arguments as for `uniform`."""
        step = self._draws.step
        if coarse and device.type == "cpu":
            return self._coarse.of(seeds, *call, step, rows, total, shape)
        own = [uniform(seed, *call, step, rows, total, shape, device) for seed in seeds]
        return own[0].unsqueeze(0) if len(own) == 1 else torch.stack(own)

    def numbers(self, module: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform numbers of this shape: those of each adapter's own batch."""
        u, dim, n = self._draw(module, shape, device)
        if dim is None or self._groups is None:
            return u
        u = u if len(u) == n else self._groups.fan_out(u)
        return u.flatten(0, 1).movedim(0, dim)

    def dropout(self, module: str, x: Tensor, p: float | Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Keyed dropout of a tensor, before the branch point (G batches) or after it (K adapters).

        Args:
            module: The path that the masks are keyed on.
            x: With the rows of G batches before the branch point, of K adapters after it.
            p: Probability of being dropped; a tensor (K,) where adapters differ, after the branch point only.
            shape: Of the mask, which is broadcast; None for that of x.
        """
        keep, dim, n = self.factors(module, p, x.shape if shape is None else shape, x)
        if dim is None:
            return x * keep
        first = x if dim == 0 else x.movedim(dim, 0)
        dropped = (first.unflatten(0, (n, -1)) * keep).flatten(0, 1)
        return dropped if dim == 0 else dropped.movedim(0, dim)

    def factors(
        self, module: str, p: float | Tensor, shape: Sequence[int], like: Tensor
    ) -> tuple[Tensor, int | None, int]:
        """What keyed dropout multiplies a tensor by; arguments as for `dropout`, the last for type and device.

        Returns:
            The factors (n or 1, rows, ...), the dimension with the rows in the draw, and n, how many times the rows
            are there: one batch's mask serves all adapters by broadcasting. Of a draw without rows the factors have
            the draw's own shape.
        """
        u, dim, n = self._draw(module, shape, like.device, coarse=True)
        if dim is None or self._groups is None:
            # One adapter's alone, where p is one number.
            return dropout_mask(u, p.item() if isinstance(p, Tensor) else p, like.dtype), None, 1
        if isinstance(p, Tensor):
            u, p = self._groups.fan_out(u), p.view(-1, *[1] * (u.dim() - 1))
        keep = dropout_mask(u, p, like.dtype)
        return keep if keep.shape[0] in (1, n) else self._groups.fan_out(keep), dim, n


def dropout_mask(u: Tensor, p: float | Tensor, dtype: torch.dtype) -> Tensor:
    """The factors of dropout; zero where everything is dropped. They may take the place of u, whose numbers are as
    `uniform` gives them."""
    coarse = u.dtype == torch.int16
    if isinstance(p, Tensor):
        return (u >= (p * 2**16 - 2**15 if coarse else p)).to(dtype).div_(1 - p)
    if p >= 1:
        return torch.zeros(u.shape, dtype=dtype, device=u.device)
    dropped, kept = _numbers(p, torch.promote_types(dtype, torch.float32), coarse)
    if u.dtype == dtype:
        keep = u.ge_(dropped)
    else:
        keep = torch.ge(u, dropped, out=torch.empty(u.shape, dtype=dtype, device=u.device))
    return keep.div_(kept)


@lru_cache
def _numbers(p: float, dtype: torch.dtype, coarse: bool) -> tuple[Tensor, Tensor]:
    """p, as uniform numbers are compared with it, and 1 - p. Of a plain number torch makes a tensor in each operation,
    which takes longer than the operation itself on a small one."""
    if coarse:
        least = torch.tensor(min(math.ceil(p * 2**16), 2**16 - 1) - 2**15, dtype=torch.int16, device="cpu")
    else:
        least = torch.tensor(p, dtype=torch.float32, device="cpu")
    return least, torch.tensor(1 - p, dtype=dtype, device="cpu")


class _Keyed:
    """The numbers of one module's draws, keyed."""

    def __init__(self, noise: Noise, module: str) -> None:
        self._noise, self._module = noise, module

    def numbers(self, shape: torch.Size, like: Tensor | None, **where: Any) -> Tensor:
        device, dtype = placed(like, where)
        return self._noise.numbers(self._module, shape, device).to(dtype)

    def dropout(self, x: Tensor, p: float, shape: torch.Size) -> Tensor:
        return self._noise.dropout(self._module, x, p, shape)


def placed(like: Tensor | None, where: Mapping[str, Any]) -> tuple[torch.device, torch.dtype]:
    """The device and type of a draw, as torch.rand and torch.rand_like take them."""
    device = where.get("device") or (torch.get_default_device() if like is None else like.device)
    dtype = where.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
    return torch.device(device), dtype


def answer_of(noise: Noise, module: str) -> NoiseMode:
    """The mode that answers draws from `noise`, as those of a module."""
    return NoiseMode(_Keyed(noise, module))


def answered(noise: Noise) -> Callable[[str, Forward], Forward]:
    """The wrapper for `replaced_forwards` that answers a module's draws from `noise`."""

    def wrap(name: str, forward: Forward) -> Forward:
        mode = answer_of(noise, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return forward(*args, **kwargs)

        return call

    return wrap
