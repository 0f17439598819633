"""What initialisations take from training data: how a layer's inputs vary, and the gradient of its weight."""

import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError, TargetError
from rankwise.lora.base.modes import in_eval
from rankwise.lora.inits import INITS, Decompositions
from rankwise.lora.layer.calls import input_and_rest
from rankwise.lora.layer_types.quantised import keep_unpacked
from rankwise.lora.targets.target import Target


@dataclass(frozen=True)
class Batches:
    """Training data, and what is done with them.

    Args:
        batches: The batches; None where there are none.
        run: (model, batch) -> outputs.
        loss: (model, batch) -> a scalar.
        mask: Batch -> which of its tokens count (rows, length); None where all do.
    """

    batches: Iterable[Any] | None
    run: Callable[[nn.Module, Any], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    mask: Callable[[Any], Tensor | None]

    @classmethod
    def given(
        cls,
        batches: Iterable[Any] | None,
        run: Callable[[nn.Module, Any], Any],
        loss: Callable[[nn.Module, Any], Tensor] | None,
    ) -> "Batches":
        """Batches that a model is called with; without a loss the outputs have one."""
        return cls(batches, run, loss or functools.partial(_own_loss, run), attention_mask)


def attention_mask(batch: Any) -> Tensor | None:
    """Which tokens of a batch of texts are no padding."""
    mask = batch.get("attention_mask") if hasattr(batch, "get") else None
    return mask if isinstance(mask, Tensor) else None


def _own_loss(run: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> Tensor:
    loss = getattr(run(model, batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f'init "lora-ga" starts from gradients, and the {type(model).__name__} returns no loss; give '
            "inject(init_loss=...), a function of (model, batch)."
        )
    return loss


def data_of_layers(
    model: nn.Module, targets: Sequence[Target], init: str, given: Batches
) -> dict[str, Decompositions] | None:
    """Return what an initialisation takes from training data, by module name; None where it takes nothing.

    The model is as before afterwards; it runs in eval mode, and adapters of other names act as they do.

    Args:
        model: The base.
        targets: The layers.
        init: A name in `INITS`.
        given: The data.

    Raises:
        ConfigError: There are no data, or no loss.
        TargetError: A layer took no part in the model's forward pass, or its weight has no gradient.
    """
    wanted = INITS[init].data
    if not wanted:
        return None
    layers = [target for target in targets if not target.layer_type.tokens]
    if given.batches is None:
        raise ConfigError(
            f'init "{init}" starts from training data, and there are none; give inject(init_data=batches), train in a '
            "sweep, or use another init."
        )
    keep_unpacked(model)
    with in_eval(model):
        found = _covariances(model, layers, given) if wanted == "inputs" else _gradients(model, layers, given)
    for target in layers:
        if target.name not in found:
            raise TargetError(
                f'"{target.name}" can\'t start with init="{init}": it took no part in the model\'s forward pass. Leave '
                "the layer out, or use another init."
            )
    return {name: Decompositions(lambda matrix=matrix: matrix, matrix) for name, matrix in found.items()}


class _Moments:
    """Sums over a layer's inputs, in float64: how many, of x, and of x x^T."""

    def __init__(self) -> None:
        self.n, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        if mask is not None and mask.shape == x.shape[:-1]:
            x = x[mask.bool()]
        x = x.detach().reshape(-1, x.shape[-1]).to(torch.float64 if x.device.type != "mps" else torch.float32)
        self.n += len(x)
        self.sum = self.sum.to(x) + x.sum(0)
        self.squares = self.squares.to(x) + x.mT @ x

    def covariance(self) -> Tensor:
        mean = self.sum / self.n
        return self.squares / self.n - torch.outer(mean, mean)


def _covariances(model: nn.Module, targets: Sequence[Target], given: Batches) -> dict[str, Tensor]:
    """The covariance (d_in, d_in) of each layer's inputs, over all tokens that are no padding, in float64."""
    moments = {target.name: _Moments() for target in targets}
    masks: list[Tensor | None] = [None]

    def watch(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            moments[name].add(args[0] if args else input_and_rest(kwargs)[0], masks[0])

        return look

    handles = [t.module.register_forward_pre_hook(watch(t.name), with_kwargs=True) for t in targets]
    try:
        with torch.no_grad():
            for batch in given.batches or ():
                masks[0] = given.mask(batch)
                given.run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: moment.covariance() for name, moment in moments.items() if moment.n}


def _gradients(model: nn.Module, targets: Sequence[Target], given: Batches) -> dict[str, Tensor]:
    """The mean gradient of each layer's weight, (d_out, d_in), in float32, or float64 over a float64 weight."""
    sums: dict[str, Tensor] = {}
    n = 0
    with _asking(model, [target.weight for target in targets]), torch.enable_grad():
        for batch in given.batches or ():
            loss = given.loss(model, batch)
            weights = [target.weight for target in targets]
            found = cast("Sequence[Tensor | None]", torch.autograd.grad(loss, weights, allow_unused=True))
            for target, gradient in zip(targets, found, strict=True):
                if gradient is not None:
                    own = gradient.mT if target.layer_type.transposed else gradient
                    own = own if own.dtype == torch.float64 else own.float()
                    sums[target.name] = sums[target.name] + own if target.name in sums else own
            n += 1
    return {name: total / n for name, total in sums.items()}


@contextmanager
def _asking(model: nn.Module, weights: Sequence[Tensor]) -> Generator[None]:
    """Inside this block these weights, and no other parameters, ask for gradients."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, asked in required.items():
            parameter.requires_grad_(asked)
