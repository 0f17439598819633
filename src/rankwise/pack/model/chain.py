"""A pack over a Sequential of torch's own modules (`rankwise.pack.model.known`), passed forward and backward by hand.

On a small network calling modules and recording what autograd needs takes as long as the products. Here neither
happens: from the first adapted layer on the backward pass is written out, and autograd is asked for the loss and for
activations without a rule of their own alone.

No code of a user's runs in it that could draw random numbers, write to the base or count its calls, so nobody has to
look after each pass whether some did. Any other model is run as it is, and looked at.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.pack.batches import Batch, WithProducts, call_model, products_of
from rankwise.pack.groups import Groups
from rankwise.pack.layers.choose import PackedLayer
from rankwise.pack.layers.linear import FACTORED
from rankwise.pack.layers.linear_layer import LinearLayer
from rankwise.pack.layers.trained import TrainedLayer
from rankwise.pack.model.known import flat_input, known_sequence
from rankwise.pack.model.trace import Branch
from rankwise.pack.noise.keyed import Noise

ENGINE: Any = torch.autograd.Variable._execution_engine  # pyright: ignore[reportPrivateUsage]
"""Of autograd. What `torch.autograd.backward` checks before it calls this takes as long as the pass through a loss."""

_PAST_AUTOGRAD: Any = torch._C._AutoDispatchBelowAutograd  # pyright: ignore[reportPrivateUsage]
"""Inside it calls don't pass through autograd at all, where `no_grad` lets each ask whether to record: with small
products 4% of a step."""

_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_log_softmax_backward = torch.ops.aten._log_softmax_backward_data.default


MUCH = 4
"""A layer's outputs are kept for each row only where its inputs are at least this many times as wide."""


class Stage(ABC):
    """A part of the chain, on the rows of each adapter: (K, rows, width)."""

    @abstractmethod
    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        """The outputs, and what the backward pass needs. The input may be overwritten."""

    @abstractmethod
    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        """The gradient of the input, in new memory or that of dy; None where nothing asks for it."""


class AdaptedStage(Stage):
    """An adapted layer.

    Args:
        name: Its path.
        layers: The layers as they run in the pack.
        first: Whether adapters still share their batches here.
    """

    def __init__(self, name: str, layers: Callable[[], Mapping[str, Any]], *, first: bool) -> None:
        self.name, self._layers, self._first = name, layers, first

    @property
    def frozen(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the base."""
        return self._layers()[self.name].frozen

    def add_updates(self, y: Tensor, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        """`forward` of the first layer, from y = W x + b on, which is left as it is."""
        layer, _ = self._layers()[self.name].chosen(groups, x.shape[1])
        y, saved = FACTORED.add_updates(layer, y.clone(), x, None)
        return y, (layer, FACTORED, saved)

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        layer, way = self._layers()[self.name].chosen(groups if self._first else None, x.shape[1])
        y, saved = way.forward(layer, x, None)
        return y, (layer, way, saved)

    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        layer, way, tensors = saved
        return way.backward(layer, tensors, dy, wants=not self._first)[0]


class TrainedStage(AdaptedStage):
    """A layer that all adapters train in full."""

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        layer: TrainedLayer = self._layers()[self.name].trained
        x = groups.fan_out(x) if self._first else x
        return layer.forward(x), (layer, x)

    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        layer, x = saved
        return layer.backward(x, dy, wants=not self._first)


class ReluStage(Stage):
    """A ReLU. Dropout that follows may set numbers of its output to zero: their gradients are zero by then."""

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        y = torch.relu_(x)
        return y, y

    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        return _threshold_backward(dy, saved, 0, grad_input=dy)


class DropoutStage(Stage):
    """The base's own dropout.

    Args:
        name: Its path.
        p: Its probability.
        noise: Keyed numbers.
    """

    def __init__(self, name: str, p: float, noise: Noise) -> None:
        self._name, self._p, self._noise = name, p, noise

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        keep, _, _ = self._noise.factors(self._name, self._p, (x.shape[0] * x.shape[1], x.shape[2]), x)
        return x.mul_(keep), keep

    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        return dy.mul_(saved)


class LogSoftmaxStage(Stage):
    """A LogSoftmax over the width."""

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        y = x.log_softmax(-1)
        return y, y

    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        return _log_softmax_backward(dy, saved, -1, dy.dtype)


class OtherModules(Stage):
    """Modules without a rule here: autograd computes their gradients."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = [*modules]

    def forward(self, x: Tensor, groups: Groups) -> tuple[Tensor, Any]:
        leaf = x.flatten(0, 1).requires_grad_()
        with torch.enable_grad():
            outputs = _run(self.modules, leaf)
        # A copy, since what follows may overwrite it, and autograd needs it.
        return outputs.detach().view(*x.shape[:2], -1).clone(), (leaf, outputs)

    def backward(self, saved: Any, dy: Tensor) -> Tensor | None:
        leaf, outputs = saved
        dx = torch.autograd.grad(outputs, leaf, dy.flatten(0, 1))[0]
        return dx.view(*dy.shape[:2], -1).clone()


class Chain:
    """The whole model.

    Args:
        before: The modules before the first adapted layer: frozen, with one copy of the rows for each batch.
        stages: From the first adapted layer on, as far as there are rules.
        behind: The modules after that, for which autograd goes on from the loss.
    """

    def __init__(self, before: Sequence[nn.Module], stages: Sequence[Stage], behind: Sequence[nn.Module]) -> None:
        self._before, self._stages, self._behind = before, stages, behind
        asks_autograd = any(isinstance(stage, OtherModules) for stage in stages)
        self._unrecorded = torch.no_grad if asks_autograd else _PAST_AUTOGRAD
        self._leaf: Tensor | None = None
        self._saved: list[Any] = []
        self.ran = False
        """Whether it ran in the last pass, and not the model."""

    def input_of(self, batch: Batch) -> Tensor | None:
        """What it computes the outputs of, as `call_model` would: inputs (rows, width) in the types they have. None
        where it can't."""
        x = flat_input(batch)
        self.ran = x is not None and not torch.is_autocast_enabled(x.device.type)
        return x if self.ran else None

    def with_products(self, data: Batch) -> Batch:
        """Return a data set that also holds W x + b of the first layer for each row, so that all epochs and seeds share
        one product. Return the data set itself where another module runs first, or the outputs would take too much
        memory."""
        first, x = self._stages[0], flat_input(data)
        if self._before or type(first) is not AdaptedStage or x is None or isinstance(data, Tensor | WithProducts):
            return data
        weight, bias = first.frozen
        if MUCH * weight.shape[0] > weight.shape[1] or (x.dtype, x.device) != (weight.dtype, weight.device):
            return data
        with self._unrecorded():
            return WithProducts(data, first.name, nn.functional.linear(x, weight, bias))

    def forward(self, x: Tensor, groups: Groups, batch: Batch) -> Tensor:
        """Outputs (K, rows, ...) for inputs (G * rows, width), those of a batch."""
        differentiates = torch.is_grad_enabled()
        self._saved = []
        with self._unrecorded():
            x = _run(self._before, x).view(groups.n_batches, -1, x.shape[1])
            for i, stage in enumerate(self._stages):
                x, saved = stage.forward(x, groups) if i else self._first(x, groups, batch)
                if differentiates:
                    self._saved.append(saved)
        self._leaf = x.requires_grad_() if differentiates else None
        return _run(self._behind, x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self._behind else x

    def _first(self, x: Tensor, groups: Groups, batch: Batch) -> tuple[Tensor, Any]:
        """The first layer, from its products where the batch has them."""
        stage = self._stages[0]
        products = products_of(batch, stage.name) if type(stage) is AdaptedStage else None
        if type(stage) is not AdaptedStage or products is None:
            return stage.forward(x, groups)
        return stage.add_updates(products.view(*x.shape[:2], -1), x, groups)

    def backward(self) -> None:
        """Add the gradients of A and B to the store, once autograd has found those of the outputs."""
        saved, leaf = self._saved, self._leaf
        self._saved, self._leaf = [], None
        if leaf is None or leaf.grad is None:
            return
        dy: Tensor | None = leaf.grad
        with self._unrecorded():
            for stage in reversed(self._stages):
                if dy is None:
                    return
                dy = stage.backward(saved.pop(), dy)


def _run(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    if any(getattr(module, "inplace", False) for module in modules):
        x = x.clone()  # autograd refuses to overwrite what it is asked for the gradient of
    for module in modules:
        x = module(x)
    return x


def _stage_of(layer: PackedLayer) -> type[AdaptedStage] | None:
    """How a layer runs in the chain; None where it can't."""
    if not isinstance(layer, LinearLayer):
        return None
    if layer.trained is not None:
        return TrainedStage
    return AdaptedStage if layer.is_plain else None


def chain_of(
    model: nn.Module,
    call: Callable[[nn.Module, Batch], Tensor],
    branch: Branch,
    layers: Callable[[], Mapping[str, PackedLayer]],
    noise: Noise,
    keyed: Collection[str],
) -> Chain | None:
    """The chain that a model is; None where it can't be passed by hand.

    Args:
        model: The model, none of whose forwards is the pack's yet.
        call: How it is run on a batch.
        branch: Where the rows part.
        layers: The adapted layers as they run in the pack; asked at every pass, as adapters leave.
        noise: Keyed numbers.
        keyed: The modules that draw noise in this mode.
    """
    modules, adapted = known_sequence(model) if call is call_model else [], layers()
    places = [i for i, (name, _) in enumerate(modules) if name in adapted]
    plain = all(_stage_of(layer) is not None for layer in adapted.values())
    rows_first = all(noise.dims.get(name, (0,)) == [0] for name in keyed)
    if not places or len(places) != len(adapted) or not plain or not rows_first:
        return None
    first = places[0]
    if not branch.inside or branch.name != modules[first][0]:
        return None
    stages: list[Stage] = []
    for name, module in modules[first:]:
        if name in adapted and (kind := _stage_of(adapted[name])) is not None:
            stages.append(kind(name, layers, first=not stages))
        elif type(module) is nn.ReLU:
            stages.append(ReluStage())
        elif name in keyed and type(module) is nn.Dropout:
            stages.append(DropoutStage(name, module.p, noise))
        elif type(module) is nn.LogSoftmax:
            stages.append(LogSoftmaxStage())
        elif type(module) is not nn.Dropout:  # one that isn't keyed drops nothing in this mode
            if isinstance(stages[-1], OtherModules):
                stages[-1].modules.append(module)
            else:
                stages.append(OtherModules(module))
    last = stages[-1]
    behind = last.modules if isinstance(last, OtherModules) else []
    return Chain([m for _, m in modules[:first]], stages[:-1] if behind else stages, behind)
