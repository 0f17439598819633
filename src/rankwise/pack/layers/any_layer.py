"""A layer of any type under K adapters: the base's own forward, and every update through `torch.vmap`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants import LORA
from rankwise.pack.groups import Groups
from rankwise.pack.layers.slots import LayerSlot, slots_in
from rankwise.pack.layers.trained import TrainedTable, is_plain_embedding, trained_embedding
from rankwise.pack.memory import ran_out
from rankwise.pack.noise.keyed import Noise
from rankwise.pack.stacks.store import Gradient, Store


class GeneralLayer:
    """A layer that is no Linear.

    Its update is the layer type's own pure function, mapped over the adapters of a bucket; where vmap can't go
    through it, adapter by adapter. A module trained in full is mapped likewise over its parameters.

    Args:
        name: The module's path.
        module: The base's layer; only read.
        kind: Its entry in `LAYER_TYPES`, or None where it is only trained in full.
        store: The pack's numbers.
        forward: The module's own forward.
    """

    def __init__(
        self, name: str, module: nn.Module, kind: LayerType | None, store: Store, forward: Callable[..., Any]
    ) -> None:
        self._name, self._module, self._kind, self._store, self._forward = name, module, kind, store, forward
        self._parts = slots_in(name, store)
        self._size = len(store)
        self._dropout = torch.cat([bucket.dropout(name, store.theta) for bucket in store.buckets])
        self._drops = bool(self._dropout.any()) and kind is not None and not kind.reads_indices
        own = [key for key, _ in module.named_parameters(recurse=False)]
        self._keys = {key: f"{name}.{key}" if name else key for key in own}
        self._leaves: dict[tuple[int, str], tuple[Tensor, Gradient]] = {}
        self._tensors: dict[int, dict[str, Tensor]] = {}
        self._tables: dict[int, TrainedTable] = {}
        for part in self._parts:
            if part.adapts:
                # What another variant computes from all of W, A and B (norms of rows) needs more than half precision.
                exact = store.buckets[part.i].variant(name) is not LORA
                self._tensors[part.i] = {}
                for key, (stack, gradient) in store.tensors(part.i, name, exact=exact).items():
                    self._tensors[part.i][key] = stack if gradient is None else _leaf(stack)
                    if gradient is not None:
                        self._leaves[part.i, f"{name}.{key}"] = self._tensors[part.i][key], gradient
            if part.trains_layer and is_plain_embedding(module):
                table = store.stack(part.i, f"{name}.weight"), store.gradient(part.i, f"{name}.weight")
                self._tables[part.i] = TrainedTable(*table, module.padding_idx)
            elif part.trains_layer:
                for key, full in self._keys.items():
                    self._leaves[part.i, key] = _leaf(store.stack(part.i, full)), store.gradient(part.i, full)
        self.loops = False
        """Whether vmap could not go through this layer."""

    @property
    def leaves(self) -> list[tuple[Tensor, Gradient]]:
        """Tensors whose gradients autograd computes, and where they go."""
        return list(self._leaves.values())

    def __call__(self, x: Tensor, groups: Groups, shared: bool, noise: Noise | None, *rest: Any, **named: Any) -> Any:
        """The layer's output for all adapters.

        Args:
            x: (K * rows, ...), or (G * rows, ...) when `shared`.
            groups: Which batch each adapter reads.
            shared: Whether the adapters still share their batches here (the branch point).
            noise: Where the adapters' own dropout takes its masks from; None in eval mode.
            rest, named: The call's other arguments.

        Returns:
            (K * rows, ...).
        """
        n = groups.n_batches if shared else self._size
        x = x.unflatten(0, (n, -1))
        x = groups.fan_out(x) if shared else x
        flat = x.flatten(0, 1)
        if not any(part.trains_layer for part in self._parts):
            y: Tensor = self._forward(flat, *rest, **named)
            pieces = None
        else:
            y = flat
            pieces = [self._base(part, x, rest, named) for part in self._parts]
        inputs = x
        if noise is not None and self._drops:
            inputs = noise.dropout(f"{self._name}.lora", flat, self._dropout).view(x.shape)
        if pieces is None:
            pieces = list(y.unflatten(0, (self._size, -1)).split([part.stop - part.start for part in self._parts]))
        updates = [
            self._update(part, inputs, y_part, rest, named) for part, y_part in zip(self._parts, pieces, strict=True)
        ]
        outputs = [
            y_part if update is None else y_part + update.to(y_part.dtype)
            for y_part, update in zip(pieces, updates, strict=True)
        ]
        return torch.cat(outputs).flatten(0, 1) if len(outputs) > 1 else outputs[0].flatten(0, 1)

    def _base(self, part: LayerSlot, x: Tensor, rest: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """The layer itself for one bucket: its adapters' own where they train it in full."""
        own = x[part.start : part.stop]
        if not part.trains_layer:
            return self._forward(own.flatten(0, 1), *rest, **named).unflatten(0, (len(own), -1))
        if part.i in self._tables:
            return trained_embedding(self._store.anchor, own, self._tables[part.i])

        def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(_Calls(self._forward, self._module), _under("module", weights), (x, *rest), named)

        return self._mapped(one, {key: self._leaves[part.i, key][0] for key in self._keys}, own)

    def _update(
        self, part: LayerSlot, x: Tensor, y: Tensor, rest: tuple[Any, ...], named: dict[str, Any]
    ) -> Tensor | None:
        kind = self._kind
        if not part.adapts or kind is None:
            return None
        bucket = self._store.buckets[part.i]
        variant, kind = bucket.variant(self._name), bucket.kind(self._name)
        tensors = self._tensors[part.i]
        x = x if kind.reads_indices else x.to(next(iter(tensors.values())).dtype)

        def one(t: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return variant.forward(kind, self._module, x, y, t, 1.0, rest, named)

        return self._mapped(one, tensors, x[part.start : part.stop], y)

    def _mapped(self, function: Callable[..., Tensor], tensors: Any, *rows: Tensor) -> Tensor:
        if not self.loops:
            try:
                return torch.vmap(function)(tensors, *rows)
            except RuntimeError as error:
                if ran_out(error):
                    raise
                self.loops = True
        k = range(rows[0].shape[0])
        return torch.stack([function(tree_map(lambda t, k=k: t[k], tensors), *(row[k] for row in rows)) for k in k])


def _leaf(stack: Tensor) -> Tensor:
    return stack.detach().requires_grad_()


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in weights.items()}


class _Calls(nn.Module):
    """A module whose forward is the one that another had before the pack replaced it."""

    def __init__(self, forward: Callable[..., Any], module: nn.Module) -> None:
        super().__init__()
        self.module, self._call = module, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)
