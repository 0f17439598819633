"""Dropout that depends on what it is for, not on when it is drawn.

The mask of a row is keyed on (seed, module path, call number in this forward pass, optimiser step, micro-batch)
and the row's place in its batch. Adapters of one seed get the same uniform numbers u, and keep an element
where u >= p. So an adapter meets the same masks alone, in any pack and after any split of a pack.

The model's own dropout (of the base) is caught where it happens: the modules whose forward calls
`torch.nn.functional.dropout` are found in one traced forward pass, and while such a module runs, a
torch-function mode answers that call.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rankwise.errors import PackError
from rankwise.pack.forwards import Forward, replaced_forwards
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


def uniform(seed: int, module: str, call: int, step: int, micro: int, shape: Sequence[int]) -> Tensor:
    """The numbers u in [0, 1) of one dropout call for one seed: (rows, ...), on the CPU in float32.

    Rows come first, so those of a shorter batch are the first rows of a longer one.
    """
    return torch.rand(tuple(shape), generator=stream("noise", seed, module, call, step, micro))


class Noise:
    """The draws of one pack; `seeds` holds the seed of each batch of a step, in their order."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self._step = self._micro = 0
        self._calls: Counter[str] = Counter()
        self._groups: Groups | None = None

    def begin(self, groups: Groups, step: int, micro: int = 0) -> None:
        """Start a forward pass: from here on calls are numbered anew."""
        self._groups, self._step, self._micro = groups, step, micro
        self._calls.clear()

    def draw(self, module: str, shape: Sequence[int], rows: int) -> Tensor:
        """u for each batch of the step: (G, rows, ...)."""
        call = self._calls[module]
        self._calls[module] += 1
        draws = [uniform(seed, module, call, self._step, self._micro, (rows, *shape)) for seed in self.seeds]
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
        n = groups.n_batches if self.before_branch else len(groups.batch_of)
        stacked = x.view(n, -1, *x.shape[1:])
        u = self.draw(module, x.shape[1:], stacked.shape[1]).to(x.device)
        if isinstance(p, Tensor):
            u, p = groups.fan_out(u), p.view(-1, *[1] * (u.dim() - 1))
        keep = (u >= p).to(x.dtype).div_(1 - p)
        # One batch's mask serves all adapters by broadcasting.
        if len(keep) not in (1, n):
            keep = groups.fan_out(keep)
        return (stacked * keep).view(x.shape)

    before_branch: bool = False
    """Whether the rows now passing are one copy a batch; the pack sets it."""


class _Answer(TorchFunctionMode):
    """Answers dropout calls made while one module runs."""

    def __init__(self, noise: Noise, module: str) -> None:
        super().__init__()
        self._noise, self._module = noise, module

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            x, p, training = _dropout_arguments(*args, **kwargs)
            return self._noise.dropout(self._module, x, p) if training and p > 0 else x
        return func(*args, **kwargs)


def _dropout_arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    return input, p, training


class _Trace(TorchFunctionMode):
    """Notes which module is running whenever dropout is called."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.noisy: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        where = self.running[-1] if self.running else ""
        if func is F.dropout and where not in self.noisy:
            self.noisy.append(where)
        if func in OTHER_NOISE and kwargs.get("training", True):
            raise PackError(
                f'"{where}" draws random numbers with {getattr(func, "__name__", func)}, which packs can\'t key '
                "to a seed yet; only torch.nn.functional.dropout can be used in training."
            )
        return func(*args, **kwargs)


def find_noisy_modules(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the modules whose own forward calls `F.dropout`, found by running the model once.

    Args:
        model: The model, in the mode it trains in.
        run: Runs its forward pass. Torch's own random state is left as it was.

    Raises:
        PackError: The model draws random numbers that can't be keyed.
    """
    trace = _Trace()

    def traced(name: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            trace.running.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                trace.running.pop()

        return call

    modules = dict(model.named_modules())
    with torch.random.fork_rng(devices=[]), torch.no_grad(), replaced_forwards(modules, traced), trace:
        run()
    return trace.noisy


def answered(noise: Noise) -> Callable[[str, Forward], Forward]:
    """The wrapper for `replaced_forwards` that answers a module's dropout calls from `noise`."""

    def wrap(name: str, forward: Forward) -> Forward:
        mode = _Answer(noise, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return forward(*args, **kwargs)

        return call

    return wrap
