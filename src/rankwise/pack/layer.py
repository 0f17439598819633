"""One layer of the model as the pack runs it: frozen, with updates, or trained whole by some adapters."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.maths import lora_update
from rankwise.pack.bucket import Bucket
from rankwise.pack.groups import Groups
from rankwise.pack.linear import PackedLinear, Segment
from rankwise.pack.noise import Noise

# torch leaves `Function.apply` untyped.
_packed_linear: Callable[..., Tensor] = PackedLinear.apply  # pyright: ignore[reportAssignmentType]

Part = tuple[int, int, Bucket]
"""A bucket and the places of its adapters in the pack: start, stop."""


class PackedLayer:
    """A Linear layer under K adapters.

    Args:
        name: The module's path.
        module: The base's layer; only read.
        buckets: The pack's buckets, in order.

    Raises:
        PackError: The module is of a type that packs don't take.
    """

    def __init__(self, name: str, module: nn.Module, buckets: Sequence[Bucket]) -> None:
        if not isinstance(module, nn.Linear):
            raise PackError(
                f'"{name}" is a {type(module).__name__}; packs train Linear layers. Leave it out of the targets.'
            )
        self._name = name
        self._weight, self._bias = module.weight, module.bias
        self._parts: list[Part] = []
        start = 0
        for bucket in buckets:
            self._parts.append((start, start + len(bucket), bucket))
            start += len(bucket)
        self._size = start
        self._whole = [part for part in self._parts if f"{name}.weight" in part[2].leaves]
        self._dropout = torch.cat([bucket.dropout(name) for bucket in buckets])
        self._drops = bool(self._dropout.any())
        self._segments: dict[Groups | None, list[Segment]] = {}
        self._leaves = [leaf for part in self._adapted(0, start) for leaf in part[2].low_rank(name)[:2]]

    def _adapted(self, first: int, last: int) -> list[Part]:
        """The parts between two places that have A and B here."""
        return [part for part in self._parts if first <= part[0] < last and part[2].adapts(self._name)]

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
        rows = x.shape[0] // n
        stacked = x.reshape(n, -1, x.shape[-1])
        if self._whole or (noise is not None and self._drops):
            y = self._run_in_parts(groups.fan_out(stacked) if shared else stacked, rows, noise)
        else:
            y = self._run_frozen(stacked, groups if shared else None)
        return y.reshape(self._size * rows, *x.shape[1:-1], y.shape[-1])

    def _run_frozen(self, x: Tensor, shared_by: Groups | None) -> Tensor:
        if shared_by not in self._segments:
            self._segments[shared_by] = [self._segment(part, shared_by) for part in self._adapted(0, self._size)]
        segments = self._segments[shared_by]
        return _packed_linear(x, self._weight, self._bias, shared_by, segments, *self._leaves)

    def _segment(self, part: Part, shared_by: Groups | None, first: int = 0) -> Segment:
        start, stop, bucket = part
        leaf_A, leaf_B, scale = bucket.low_rank(self._name)
        A, B = leaf_A.detach(), leaf_B.detach()
        runs = None if shared_by is None else shared_by.runs(start, stop)
        return Segment(start - first, stop - first, A, B, B.mT, scale, runs)

    def _run_in_parts(self, x: Tensor, rows: int, noise: Noise | None) -> Tensor:
        """Bucket by bucket: some train the layer whole, or their updates read x through masks of their own."""
        dropped = None
        if noise is not None and self._drops:
            flat = x.reshape(self._size * rows, -1, x.shape[-1])
            dropped = noise.dropout(f"{self._name}.lora", flat, self._dropout).reshape(x.shape)
        pieces: list[Tensor] = []
        for part in self._parts:
            start, stop, bucket = part
            own = x[start:stop]
            if part in self._whole:
                weight, bias = bucket.leaves[f"{self._name}.weight"], bucket.leaves.get(f"{self._name}.bias")
                y = own @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), own, weight.mT)
            elif not bucket.adapts(self._name):
                y = torch.nn.functional.linear(own, self._weight, self._bias)
            elif dropped is not None:
                y = torch.nn.functional.linear(own, self._weight, self._bias)
                y = y + lora_update(dropped[start:stop], *bucket.low_rank(self._name))
            else:
                segments, leaves = [self._segment(part, None, start)], bucket.low_rank(self._name)[:2]
                y = _packed_linear(own, self._weight, self._bias, None, segments, *leaves)
            pieces.append(y)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
