"""A Linear layer (or transformers' Conv1D) as the pack runs it: frozen, with updates, or trained in full by some."""

import torch
from torch import Tensor, nn

from rankwise.lora.layer_types import LayerType, weight_of
from rankwise.pack.groups import Groups
from rankwise.pack.layers.half import Halves, half_product, packed_half
from rankwise.pack.layers.linear import FACTORED, Layer, Segment, Way, own_memory, packed_linear
from rankwise.pack.layers.slots import LayerSlot, slots_in
from rankwise.pack.layers.trained import TrainedLayer, trained_linear
from rankwise.pack.noise.keyed import Noise
from rankwise.pack.precision import HALF
from rankwise.pack.stacks.store import Gradient, Store


class LinearLayer:
    """A layer that multiplies by a matrix, under K adapters.

    Args:
        name: The module's path.
        module: The base's layer; only read.
        kind: Its entry in `LAYER_TYPES`.
        store: The pack's numbers.
        halves: Where its products run in bfloat16 (`rankwise.pack.layers.half`), the numbers they share; else None.
    """

    def __init__(
        self, name: str, module: nn.Module, kind: LayerType, store: Store, halves: Halves | None = None
    ) -> None:
        self._name, self._store, self._halves = name, store, halves
        weight = weight_of(module)
        self._transposed = kind.transposed
        self._exact = halves is None and weight.dtype == torch.float32
        self._weight = weight.mT if kind.transposed else weight
        if halves is not None:
            self._weight = halves.weight(module)
        self._bias: Tensor | None = getattr(module, "bias", None)
        self._parts = slots_in(name, store)
        self._size = len(store)
        dropout = [bucket.dropout(name, store.theta) for bucket in store.buckets]
        self._dropout = torch.cat(dropout)
        self._drops = bool(self._dropout.any())
        self._any_trained = any(part.trains_layer for part in self._parts)
        self._layers: dict[object, Layer] = {}
        self._chosen: dict[tuple[Groups | None, int], tuple[Layer, Way]] = {}
        self._trained = {part.i: self._trained_in(part.i) for part in self._parts if part.trains_layer}

    def _trained_in(self, i: int) -> TrainedLayer:
        weight, bias = (f"{self._name}.{key}" for key in ("weight", "bias"))
        has_bias = bias in self._store.buckets[i].shapes
        return TrainedLayer(
            self._store.stack(i, weight, exact=self._exact),
            self._store.stack(i, bias, exact=self._exact) if has_bias else None,
            self._store.gradient(i, weight),
            self._store.gradient(i, bias) if has_bias else None,
            self._transposed,
        )

    @property
    def leaves(self) -> list[tuple[Tensor, Gradient]]:
        """Tensors whose gradients autograd computes, and where they go: none."""
        return []

    def __call__(self, x: Tensor, groups: Groups, shared: bool, noise: Noise | None) -> Tensor:
        """The layer's output for all adapters.

        Args:
            x: (K * rows, ..., d_in), or (G * rows, ..., d_in) when `shared`.
            groups: Which batch each adapter reads.
            shared: Whether the adapters still share their batches here (the branch point).
            noise: Where the adapters' own dropout takes its masks from; None in eval mode.

        Returns:
            (K * rows, ..., d_out).
        """
        n = groups.n_batches if shared else self._size
        drops = noise is not None and self._drops
        if shared and (drops or self._any_trained):
            x_own, shared = groups.fan_out(x.unflatten(0, (n, -1))).flatten(0, 1), False
        else:
            x_own = x
        dropped = noise.dropout(f"{self._name}.lora", x_own, self._dropout) if noise is not None and drops else None
        if self._halves is None and not self._any_trained:
            return self._run(x_own, dropped, groups if shared else None)
        stacked = x_own.reshape(groups.n_batches if shared else self._size, -1, x.shape[-1])
        dropped = None if dropped is None else dropped.reshape(stacked.shape)
        # The halves of one x serve all layers that read it; what is made of it here serves this one.
        half = self._halves.of(x).reshape(stacked.shape) if self._halves is not None and x_own is x else None
        if self._any_trained:
            pieces = [self._run_part(part, stacked, dropped, half) for part in self._parts]
            y = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        else:
            y = self._half_factored(stacked, dropped, self._layer(groups if shared else None), half)
        return own_memory(y, (self._size * (x.shape[0] // n), *x.shape[1:-1], y.shape[-1]))

    def _layer(self, groups: Groups | None) -> Layer:
        """The layer with all adapters."""
        layer = self._layers.get(groups)
        if layer is None:
            segments = [self._segment(part, groups) for part in self._parts if part.adapts]
            layer = self._layers[groups] = Layer(self._weight, self._bias, self._size, segments, groups)
        return layer

    def _run(self, x: Tensor, dropped: Tensor | None, groups: Groups | None) -> Tensor:
        """All adapters at once, in one precision: (K * rows, ..., d_out)."""
        layer, way = self.chosen(groups, x.numel() // (self._size * x.shape[-1]))
        return packed_linear(self._store.anchor, x, dropped, layer, FACTORED if dropped is not None else way)

    def chosen(self, groups: Groups | None, rows: int) -> tuple[Layer, Way]:
        """The layer with all adapters, and the cheapest way of its products; of one with dropout `FACTORED`.

        Args:
            groups: Which batch each adapter reads, where they still share their batches here.
            rows: The rows of each adapter.
        """
        found = self._chosen.get((groups, rows))
        if found is None:
            layer = self._layer(groups)
            found = self._chosen[groups, rows] = layer, layer.cheapest(rows)
        return found

    @property
    def frozen(self) -> tuple[Tensor, Tensor | None]:
        """The base's weight (d_out, d_in) and bias."""
        return self._weight, self._bias

    @property
    def is_plain(self) -> bool:
        """Whether all that runs here is one product for the base and the adapters' own, in one precision."""
        return self._halves is None and not self._any_trained and not self._drops

    @property
    def trained(self) -> TrainedLayer | None:
        """What runs here where all adapters are of one bucket and train the layer in full, in one precision."""
        return self._trained.get(0) if self._halves is None and len(self._parts) == 1 else None

    def _half_factored(self, x: Tensor, dropped: Tensor | None, layer: Layer, half: Tensor | None) -> Tensor:
        half = x.detach().to(HALF) if half is None else half
        return packed_half(
            self._store.anchor, x, dropped, half, None if dropped is None else dropped.detach().to(HALF), layer
        )

    def _run_part(self, part: LayerSlot, x: Tensor, dropped: Tensor | None, half: Tensor | None) -> Tensor:
        """One bucket's adapters, where some bucket trains the layer in full."""
        own = x[part.start : part.stop]
        if half is not None:
            half = half[part.start : part.stop]
        if part.trains_layer:
            layer, rounded = self._trained[part.i], None
            if layer.weight.dtype != own.dtype:
                rounded = half if half is not None and half.dtype == layer.weight.dtype else None
                rounded = own.detach().to(layer.weight.dtype) if rounded is None else rounded
            return trained_linear(self._store.anchor, own, rounded, layer)
        if not part.adapts and self._halves is not None:
            return half_product(own, own.detach().to(HALF) if half is None else half, self._weight, self._bias)
        if not part.adapts:
            return nn.functional.linear(own, self._weight, self._bias)
        layer = self._layers.get(part)
        if layer is None:
            segments = [self._segment(part, None, part.start)]
            layer = self._layers[part] = Layer(self._weight, self._bias, part.stop - part.start, segments)
        dropped = None if dropped is None else dropped[part.start : part.stop]
        if self._halves is not None:
            return self._half_factored(own, dropped, layer, half)
        return packed_linear(self._store.anchor, own, dropped, layer, FACTORED)

    def _segment(self, part: LayerSlot, groups: Groups | None, first: int = 0) -> Segment:
        tensors = self._store.tensors(part.i, self._name, exact=self._exact)
        # What is frozen has a gradient that no step writes to.
        (A, A_grad), (B, B_grad) = ((t, to or Gradient(t, [False])) for t, to in (tensors["A"], tensors["B"]))
        taken = None
        if "A0" in tensors:
            taken = tensors["A0"][0], -tensors["B0"][0].mT.contiguous().mT
        runs = None if groups is None else groups.runs(part.start, part.stop)
        return Segment(part.start - first, part.stop - first, A, B, A_grad, B_grad, runs, taken)
