"""Warn of adapters that the first optimiser steps don't change, because no gradient reaches them."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.lora.adapter import LoRA, adapted_layers
from rankwise.lora.base.before_forward import WeakHook, before_forward
from rankwise.lora.base.samples import remember_base
from rankwise.lora.checks.complete import check_complete
from rankwise.lora.checks.foreign import is_sharded
from rankwise.lora.offloaded import has_data, in_fake_mode
from rankwise.lora.targets.modules import base_modules, base_tensors

_STEPS = "_rankwise_steps"
"""Attribute of an injected model during its first ten steps: the `Steps`."""

ENOUGH = 10
"""Optimiser steps."""

_GIVE_UP = 1000
"""Forwards in training mode after which the check ends."""


@dataclass
class _Start:
    """A tensor of an adapter that is zero at the start (B, or A of an embedding), and so shows that it moved.

    It is looked up at every use, since others may replace the parameter.
    """

    path: str
    lora: LoRA
    name: str
    key: str

    @property
    def matrix(self) -> Tensor:
        return self.lora.parameters_of(self.name)[self.key]


class Steps:
    """Counts optimiser steps by the changes of one matrix, and warns once of those that are zero after ten.

    It costs a pre-hook of the model in training mode: one look at all matrices at forwards 1, 2, 4, ... until one
    has moved, then a comparison of that one with its copy at each forward, and one look at all at the end. (The
    version that autograd keeps of a tensor would be cheaper, but fused optimisers don't count it up.)

    Args:
        model: The injected model.
        name: The adapter.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.forwards = self.steps = 0
        self.starts: list[_Start] = []
        self.first: _Start | None = None
        self.before: Tensor | None = None
        hook = before_forward(model)
        hook.in_training.append(self.look)
        self.hook = WeakHook(hook)

    def look(self, model: nn.Module) -> None:
        """Before a training forward: has there been a step since the last one?"""
        if in_fake_mode():
            return
        if not self.forwards:
            if any(self.name in lora.scale for _, lora in adapted_layers(model).values()):
                check_complete(model, self.name)
            remember_base(model)
            _warn_of_unfrozen(model)
            self.starts = _zeros(model, self.name)
            acting = [start for start in self.starts if self.name in start.lora.active]
            if acting and not any(start.matrix.requires_grad for start in acting):
                warnings.warn(
                    f'Adapter "{self.name}" is new and none of its parameters ask for gradients, so training leaves it '
                    "without effect. They were frozen after inject, by requires_grad_(False) on the model or by "
                    "prepare_model_for_kbit_training; call that first.",
                    stacklevel=4,
                )
            if len(self.starts) < 2:
                stop_counting(model)
                return
        self.forwards += 1
        if self.first is None and not self.forwards & (self.forwards - 1):
            still = {start.path for start in _still_zero(self.starts)}
            self.first = next((start for start in self.starts if start.path not in still), None)
        if self.first is not None and (self.before is None or not torch.equal(self.first.matrix, self.before)):
            self.steps += 1
            self.before = self.first.matrix.detach().clone()
        if self.steps >= ENOUGH:
            stop_counting(model)
            self._warn()
        elif self.forwards >= _GIVE_UP:
            stop_counting(model)

    def _warn(self) -> None:
        still = [start.path for start in _still_zero(self.starts)]
        if still and len(still) < len(self.starts):
            shown = ", ".join(f'"{path}"' for path in still[:5]) + (", ..." if len(still) > 5 else "")
            warnings.warn(
                f"After {ENOUGH} optimiser steps {len(still)} of {len(self.starts)} adapted layers have not moved: "
                f"{shown}. No gradient reaches them: the loss does not depend on them, no input took their way "
                "(experts that no token chose), or they are recomputed in the backward pass and their input asks for "
                "none.",
                stacklevel=4,
            )


def _warn_of_unfrozen(model: nn.Module) -> None:
    """Warn of the base's own parameters that a user has unfrozen: no adapter's file holds what is trained there."""
    asking = [path for path, p in base_tensors(model, buffers=False).items() if p.requires_grad]
    if asking:
        more = f" and {len(asking) - 1} more" if len(asking) > 1 else ""
        warnings.warn(
            f'The base\'s "{asking[0]}"{more} asks for gradients, though inject froze it. What is trained there is in '
            "no adapter's file. To train it with the adapter: modules_to_save, or bias.",
            stacklevel=5,
        )


def _zeros(model: nn.Module, name: str) -> list[_Start]:
    starts = [
        _Start(path, lora, name, declared.name)
        for path, (_, lora) in adapted_layers(model).items()
        if name in lora.scale
        for declared in lora.variant_of(name).trained
        if lora.parameters_of(name)[declared.name].numel()
    ]
    # No optimiser steps what functional_call or vmap has put in a parameter's place; of a sharded one a part is here.
    matrices = [start.matrix for start in starts]
    real = all(isinstance(it, nn.Parameter) and has_data(it) and not is_sharded(it) for it in matrices)
    zero = _still_zero(starts) if real else []
    return list({start.path: start for start in reversed(zero)}.values())[::-1]


def _still_zero(starts: list[_Start]) -> list[_Start]:
    """Return those whose matrix is zero, with one synchronisation for each device."""
    if not starts:
        return []
    moved = torch.stack([start.matrix.detach().any().cpu() for start in starts]).tolist()
    return [start for start, has_moved in zip(starts, moved, strict=True) if not has_moved]


def count_steps(model: nn.Module, name: str) -> None:
    """Watch the first optimiser steps of an adapter."""
    stop_counting(model)
    setattr(model, _STEPS, Steps(model, name))


def stop_counting(model: nn.Module) -> None:
    """Undo `count_steps`, in a model or any part of it."""
    for module in base_modules(model):
        steps = module.__dict__.pop(_STEPS, None)
        if isinstance(steps, Steps):
            steps.hook.remove(steps.look, module)
