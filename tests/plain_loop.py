"""The plain training loop over one adapter on any model: hooks, torch's optimisers, masks from the documented key.

It uses nothing of `rankwise.pack`: what a pack must equal.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reference import dropout_numbers

Batch = Mapping[str, Tensor]


@dataclass
class Plain:
    """One adapter: A and B for each target, or modules trained in full."""

    scale: float
    lr: float
    seed: int = 0
    dropout: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    modules_to_save: Sequence[str] = field(default=())
    sgd: tuple[float, bool] | None = None
    """Momentum, and whether it is Nesterov's; None for AdamW."""

    def optimiser(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        if self.sgd is None:
            return torch.optim.AdamW(tensors, lr=self.lr, weight_decay=self.weight_decay)
        momentum, nesterov = self.sgd
        return torch.optim.SGD(
            tensors, lr=self.lr, momentum=momentum, nesterov=nesterov, weight_decay=self.weight_decay
        )


class KeyedDropout(TorchFunctionMode):
    """Answers the dropout of a running model; the masks are drawn whole from the key, as documented."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.seed, self.step, self.running, self.calls = seed, 0, [""], Counter[str]()
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda m, a, name=name: self.running.append(name))
            module.register_forward_hook(lambda m, a, y: (self.running.pop(), None)[1])

    def dropped(self, module: str, x: Tensor, p: float) -> Tensor:
        u = dropout_numbers(self.seed, module, self.calls[module], self.step, x.shape)
        self.calls[module] += 1
        return x * ((u >= p).to(x) / (1 - p))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            x, p, training = (lambda input, p=0.5, training=True, inplace=False: (input, p, training))(*args, **kwargs)
            return self.dropped(self.running[-1], x, p) if training and p else x
        return func(*args, **kwargs)


def train_plainly(
    model: nn.Module,
    plain: Plain,
    start: Mapping[str, Tensor],
    batches: Sequence[Batch],
    outputs_of: Callable[[nn.Module, Batch], Tensor],
    loss: Callable[[Tensor, Batch], Tensor],
    update: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] = lambda m, x, A, B: x @ A.T @ B.T,
) -> dict[str, Tensor]:
    """Train from `start` ("<module>.A", "<module>.B", names of parameters trained in full), and return the tensors.

    The model is used up: its hooks and weights stay changed.
    """
    tensors = {key: value.clone().requires_grad_() for key, value in start.items()}
    model.requires_grad_(False)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    mode = KeyedDropout(model, plain.seed)

    def hook(name: str) -> Callable[..., Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            x = args[0]
            if plain.dropout and x.is_floating_point():
                x = mode.dropped(f"{name}.lora", x, plain.dropout)
            return y + plain.scale * update(module, x, tensors[f"{name}.A"], tensors[f"{name}.B"])

        return add

    for key in start:
        if key.endswith(".A") and key[:-2] + ".B" in start:
            model.get_submodule(key[:-2]).register_forward_hook(hook(key[:-2]))
    optimiser = plain.optimiser(list(tensors.values()))
    for step, batch in enumerate(batches):
        mode.step = step
        mode.calls.clear()
        with ExitStack() as stack:
            stack.enter_context(mode)
            own = {key: tensors[key] for key in tensors if not key.endswith((".A", ".B"))}
            stack.enter_context(nn.utils.stateless._reparametrize_module(model, own))
            value = loss(outputs_of(model, batch), batch)
        optimiser.zero_grad()
        value.backward()
        if plain.clip is not None:
            nn.utils.clip_grad_norm_(list(tensors.values()), plain.clip)
        optimiser.step()
    return {key: value.detach() for key, value in tensors.items()}
