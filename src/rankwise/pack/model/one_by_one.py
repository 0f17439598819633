"""One adapter of a pack run alone, by definition (`rankwise.lora.maths.lora_model`): its W + s B A and its own weights
put into the model for one forward pass.

Where that can't be, the update is added to the layer's output: a quantised weight can't take in s B A, and with dropout
the update reads another input than the layer.

Slow and simple. The probe compares the pack with it, and a model whose layers can't be batched trains through it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora import maths
from rankwise.lora.targets.find import Target
from rankwise.lora.variants import FORMS
from rankwise.pack.noise.forwards import Forward, replaced_forwards
from rankwise.pack.noise.keyed import Noise
from rankwise.pack.resolved import Resolved
from rankwise.pack.stacks.store import Gradient, Store


class OneByOne:
    """Every adapter's own weights, as functions of the pack's numbers.

    Args:
        model: The base.
        store: The pack's numbers.
        call: How the model is run on a batch.
    """

    def __init__(self, model: nn.Module, store: Store, call: Callable[[nn.Module, Any], Tensor]) -> None:
        self._caller = _Caller(model, call)
        self._store = store
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self._places = [(i, k, m) for i, b in enumerate(store.buckets) for k, m in enumerate(b.members)]
        self._leaves: dict[tuple[int, str, int], tuple[Tensor, Gradient]] = {}
        self._tensors: dict[tuple[int, str, int], dict[str, Tensor]] = {}
        for i, bucket in enumerate(store.buckets):
            first = bucket.members[0]
            # What takes a weight's place has its type; all that is added to one is summed first.
            wide = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
            stacks = {
                name: (store.stack(i, name, exact=name in wide), store.gradient(i, name))
                for name in first.trained_parameters
            }
            found = {t.name: store.tensors(i, t.name, exact=True) for t in first.targets}
            for module, tensors in found.items():
                stacks |= {f"{module}.{key}": (s, g) for key, (s, g) in tensors.items() if g is not None}
            # Each adapter's own: one that a step doesn't use must be distinguished from one with a gradient of zero.
            for k in range(len(bucket)):
                for key, (stack, gradient) in stacks.items():
                    self._leaves[i, key, k] = stack[k].detach().requires_grad_(), gradient
                for module, tensors in found.items():
                    self._tensors[i, module, k] = {
                        key: stack[k] if gradient is None else self._leaves[i, f"{module}.{key}", k][0]
                        for key, (stack, gradient) in tensors.items()
                    }

    def collect(self) -> None:
        """Store the gradients that autograd has computed."""
        for (_, _, k), (leaf, gradient) in self._leaves.items():
            if leaf.grad is not None:
                gradient.copy_one(k, leaf.grad)
                leaf.grad = None

    def _added(self, place: int, noise: Noise | None) -> dict[str, Target]:
        """The targets of the adapter at this place whose update is added to the layer's output."""
        i, k, member = self._places[place]
        bucket = self._store.buckets[i]
        return {
            t.name: t
            for t in member.targets
            if t.layer_type.quantised is not None
            # A parametrised weight is recomputed at each call.
            or getattr(t.module, t.parameter) not in self._names
            or (noise is not None and drops(t) and bool(bucket.dropout(t.name, self._store.theta)[k]))
        }

    def _deltas(self, place: int, added: Collection[str]) -> dict[str, Tensor]:
        """The changes of weights by the adapter at this place of the pack. One that several modules share has one."""
        deltas: dict[str, Tensor] = {}
        i, k, member = self._places[place]
        for t in member.targets:
            if t.name not in added:
                delta = FORMS[t.variant].delta(t.layer_type, t.module, self._tensors[i, t.name, k], 1.0)
                deltas[f"model.{self._names[getattr(t.module, t.parameter)]}"] = delta
        return deltas

    def __call__(
        self,
        place: int,
        batch: Any,
        noise: Noise | None = None,
        then: Callable[[Tensor], object] = lambda outputs: None,
    ) -> Tensor:
        """Outputs of the adapter at this place on its own batch.

        Args:
            place: The adapter's.
            batch: Its rows.
            noise: Where its dropout takes its masks from; None in eval mode. A weight that is read without calling
                its layer has no input that could be dropped, as in `inject`.
            then: Called with the outputs while the model has the adapter's weights.
        """
        added = self._added(place, noise)
        i, k, member = self._places[place]
        trained = {f"model.{name}": self._leaves[i, name, k][0] for name in member.trained_parameters}
        modules = {name: target.module for name, target in added.items()}
        with replaced_forwards(modules, lambda name, forward: self._adding(place, added[name], forward, noise)):
            try:
                return maths.lora_model(self._caller, self._deltas(place, added), (batch, then), trained)
            except RuntimeError as error:
                refuse_known(error)
                raise

    def _adding(self, place: int, target: Target, forward: Forward, noise: Noise | None) -> Forward:
        """A layer's forward with the update of the adapter at this place added to its output."""
        i, k, _ = self._places[place]
        tensors, variant = self._tensors[i, target.name, k], FORMS[target.variant]
        dropout = self._store.buckets[i].dropout(target.name, self._store.theta)[k : k + 1]

        def call(x: Tensor, *rest: Any, **named: Any) -> Tensor:
            y: Tensor = forward(x, *rest, **named)
            inputs = x if target.layer_type.reads_indices else x.to(next(iter(tensors.values())).dtype)
            if noise is not None and drops(target) and bool(dropout):
                inputs = noise.dropout(f"{target.name}.lora", inputs, dropout)
            added = variant.forward(target.layer_type, target.module, inputs, y, tensors, 1.0, rest, named)
            return y + added.to(y.dtype)

        return call


def backward_once(model: nn.Module, losses: Tensor, start: Tensor) -> None:
    """The first backward pass of adapters that run one after another: nothing may run forward again in it, as each
    the model has one's weights for its own forward pass only.

    Raises:
        PackError: Something does.
    """
    again: list[str] = []

    def noting(name: str, forward: Forward) -> Forward:
        return lambda *args, **kwargs: again.append(name) or forward(*args, **kwargs)

    try:
        with replaced_forwards(dict(model.named_modules()), noting):
            torch.autograd.backward(losses, start)
    except RuntimeError as error:
        refuse_known(error)
        if not again:
            raise
    if again:
        raise PackError(
            f'"{again[0]}" runs again in the backward pass (gradient checkpointing), and the adapters run one after '
            "another here, each with its own weights in place of the model's. Switch checkpointing off."
        )


KNOWN = {
    "inplace": "The model writes to a tensor in place that the gradient of an adapted layer still needs ({}). Write "
    "x = x + y instead of x += y there.",
    "through the graph a second time": "The model calls backward inside its own forward pass ({}). Use "
    "torch.autograd.grad with the inputs there, which leaves the step's own gradients alone.",
    "randomness error mode": "Dropout acts inside torch.func.vmap ({}). Set the dropout of the adapters and of the "
    "model to 0, or map with randomness='different'.",
}
"""Part of torch's message -> the fault of the model; the first words of the message replace {}."""


def refuse_known(error: RuntimeError) -> None:
    """Raise an error of torch's in words of what is wrong with the model, where that is known.

    Raises:
        PackError: It is.
    """
    for part, words in KNOWN.items():
        if part in str(error):
            raise PackError(words.format(" ".join(str(error).split())[:160])) from error


def acting_dropout(members: Sequence[Resolved]) -> list[str]:
    """Notes on layers where dropout has no effect for adapters that run one after another.

    Raises:
        PackError: It can't be right.
    """
    dropping = [m for m in members if m.member.lora is not None and m.member.lora.dropout]
    tied = next((t.name for m in dropping for t in m.targets if t.ties), None)
    if tied is not None:
        raise PackError(
            f'The weight of "{tied}" is shared by several modules; in a pack its adapter can\'t have dropout of '
            "its own. Set dropout to 0, or copy the weight first."
        )
    unread = {t.name for m in dropping for t in m.targets if t.reader is not None}
    if not unread:
        return []
    return [f"Dropout doesn't act on {', '.join(sorted(unread))}: these weights are read without calling the layer."]


def drops(target: Target) -> bool:
    """Whether dropout can act on a target: it is called on numbers."""
    return target.reader is None and not target.layer_type.reads_indices


class _Caller(nn.Module):
    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self._call = model, call

    def forward(self, batch: Any, then: Callable[[Tensor], object]) -> Tensor:
        outputs = self._call(self.model, batch)
        then(outputs)
        return outputs
