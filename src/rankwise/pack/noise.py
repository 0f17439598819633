"""Dropout that depends on what it is for, not on when it is drawn.

The mask of a row is keyed on (seed, module path, call number in this forward pass, optimiser step)
and the row's place in the whole batch of the step. Adapters of one seed get the same uniform numbers u, and
keep an element where u >= p. So an adapter meets the same masks alone, in any pack and after any split of a pack.

The model's own dropout (of the base) is caught where it happens: `rankwise.pack.trace` finds the modules whose
forward calls it, and while such a module runs, a torch-function mode answers that call.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankwise.errors import PackError
from rankwise.pack.forwards import Forward
from rankwise.pack.groups import Groups
from rankwise.streams import stream

OTHER_NOISE = (
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    F.rrelu,
    F.gumbel_softmax,
    torch.rand_like,
    torch.randn_like,
    torch.bernoulli,
)
"""Draws that are not keyed yet; a model that makes one in training is refused."""


def uniform(
    seed: int, module: str, call: int, step: int, rows: slice, total: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """The numbers u in [0, 1) of some rows in one dropout call for one seed: (rows, ...), in float32.

    Args:
        seed, module, call, step: What they are keyed on, beside the device.
        rows: Which of the batch's rows.
        total: How many rows the batch has.
        shape: Of one row.
        device: Where they are drawn.
    """
    # The numbers of a part are those of the whole: a CPU's first ones are the same however many follow, a GPU's aren't.
    drawn = rows.stop if device.type == "cpu" else total
    generator = stream("noise", seed, module, call, step, device=device)
    u = torch.rand((drawn, *shape), generator=generator, device=device)
    # Of a part a copy, or all that was drawn would stay.
    return u if rows == slice(0, drawn) else u[rows].clone()


@dataclass(frozen=True)
class Draws:
    """What the noise of a forward pass is keyed on, beside the modules.

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
        self._calls: Counter[str] = Counter()
        self._again: Counter[str] | None = None
        self._groups: Groups | None = None
        self.before: Collection[str] = ()
        """Modules that run before the branch point, where the rows are one copy a batch; the pack sets it."""

    def begin(self, groups: Groups, draws: Draws) -> None:
        """Start a forward pass: from here on calls are numbered anew.

        Args:
            groups: Which adapter reads which batch.
            draws: What the numbers are keyed on.
        """
        self._groups, self._draws = groups, draws
        self._calls.clear()
        self._again = None

    def backward(self) -> None:
        """Start the backward pass: what runs forward again now (gradient checkpointing) gets the same masks."""
        self._again = Counter()

    def _number(self, module: str) -> int:
        """Which call of the module this is in the forward pass."""
        if self._again is None:
            self._calls[module] += 1
            return self._calls[module] - 1
        if self._calls[module] > 1:
            raise PackError(
                f'"{module}" runs {self._calls[module]} times in a forward pass and draws noise; with gradient '
                "checkpointing its calls can't be told apart. Switch checkpointing or the model's dropout off."
            )
        return 0

    def draw(self, module: str, shape: Sequence[int], rows: int, device: torch.device) -> Tensor:
        """u for each batch of the step: (G, rows, ...). Of each of the batch's rows a module may have made several, its
        tokens, say: they lie side by side."""
        call = self._number(module)
        of = self._draws
        made = 1 if of.rows is None else rows // of.rows
        if of.rows is not None and made * of.rows != rows:
            raise PackError(
                f'Dropout in "{module}" has {rows} rows, and {of.rows} of the batch pass: not the same number of each. '
                "Let whole batches pass (no rows_a_pass), or switch the dropout off."
            )
        own = slice(of.first * made, of.first * made + rows)
        total = rows if of.total is None else of.total * made
        draws = [uniform(seed, module, call, of.step, own, total, shape, device) for seed in of.seeds]
        return draws[0].unsqueeze(0) if len(draws) == 1 else torch.stack(draws)

    def dropout(self, module: str, x: Tensor, p: float | Tensor) -> Tensor:
        """Keyed dropout of a tensor of rows, before the branch point (G batches) or after it (K adapters).

        Args:
            module: The path that the masks are keyed on.
            x: (G * rows, ...) before the branch point, (K * rows, ...) after it.
            p: Probability of being dropped; a tensor (K,) where adapters differ, after the branch point only.
        """
        groups = self._groups
        if groups is None:
            raise PackError(f'Dropout in "{module}" ran outside a step of the pack.')
        n = groups.n_batches if module in self.before else len(groups.batch_of)
        if x.shape[0] % n:
            raise PackError(
                f'Dropout in "{module}" has inputs of shape {tuple(x.shape)}, without the rows of the batch.'
            )
        stacked = x.view(n, -1, *x.shape[1:])
        u = self.draw(module, x.shape[1:], stacked.shape[1], x.device)
        if isinstance(p, Tensor):
            u, p = groups.fan_out(u), p.view(-1, *[1] * (u.dim() - 1))
        keep = (u >= p).to(x.dtype).div_(1 - p)
        # One batch's mask serves all adapters by broadcasting.
        if len(keep) not in (1, n):
            keep = groups.fan_out(keep)
        return (stacked * keep).view(x.shape)

    def attention(self, module: str, *args: Any, **kwargs: Any) -> Tensor:
        """`F.scaled_dot_product_attention` with keyed dropout of the attention weights, by its definition."""
        a = _attention_arguments(*args, **kwargs)
        query, key, value = a["query"], a["key"], a["value"]
        if a["enable_gqa"]:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scale = query.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
        scores = (query * scale) @ key.mT
        if a["is_causal"]:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, -torch.inf)
        mask: Tensor | None = a["attn_mask"]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return self.dropout(module, scores.softmax(-1), a["dropout_p"]) @ value


def _attention_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, Any]:
    return dict(locals())


class _Answer(TorchFunctionMode):
    """Answers dropout calls made while one module runs."""

    def __init__(self, noise: Noise, module: str) -> None:
        super().__init__()
        self._noise, self._module = noise, module

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _drops(func, args, kwargs):
            return func(*args, **kwargs)
        if func is F.dropout:
            x, p, _ = _dropout_arguments(*args, **kwargs)
            return self._noise.dropout(self._module, x, p)
        return self._noise.attention(self._module, *args, **kwargs)


def _drops(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this is a call of dropout that drops anything."""
    if func is F.dropout:
        _, p, training = _dropout_arguments(*args, **kwargs)
        return training and p > 0
    return func is F.scaled_dot_product_attention and _attention_arguments(*args, **kwargs)["dropout_p"] > 0


def _dropout_arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    return input, p, training


class NoiseSeen(TorchFunctionMode):
    """Notes which module is running whenever noise is drawn, and refuses what can't be keyed.

    Args:
        running: The modules that run now, the innermost last; whoever calls the model keeps it.
    """

    def __init__(self, running: Sequence[str]) -> None:
        super().__init__()
        self._running = running
        self.noisy: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        where = self._running[-1] if self._running else ""
        if _drops(func, args, kwargs):
            self.noisy[where] = None
        elif _draws(func, kwargs):
            raise PackError(
                f'"{where}" draws random numbers with {getattr(func, "__name__", func)}, which packs can\'t key '
                "to a seed; only dropout and scaled_dot_product_attention of torch.nn.functional can be used in "
                "training. Switch it off in the model's configuration."
            )
        return func(*args, **kwargs)


def _draws(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    if func is F.multi_head_attention_forward:
        return bool(kwargs.get("training", True)) and kwargs.get("dropout_p", 0.0) > 0
    return func in OTHER_NOISE and bool(kwargs.get("training", True))


def answered(noise: Noise) -> Callable[[str, Forward], Forward]:
    """The wrapper for `replaced_forwards` that answers a module's dropout calls from `noise`."""

    def wrap(name: str, forward: Forward) -> Forward:
        mode = _Answer(noise, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return forward(*args, **kwargs)

        return call

    return wrap
