"""One layer of the model as the pack runs it: frozen, with updates, or trained whole by some adapters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.maths import lora_update
from rankwise.pack.bucket import Bucket
from rankwise.pack.groups import Groups
from rankwise.pack.linear import PackedLinear, Segment
from rankwise.pack.noise import Noise


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
        self.name = name
        self._weight, self._bias = module.weight, module.bias
        self._adapted: list[tuple[int, int, Bucket]] = []
        self._whole: list[tuple[int, int, Bucket]] = []
        start = 0
        for bucket in buckets:
            stop = start + len(bucket)
            if f"{name}.weight" in bucket.leaves:
                self._whole.append((start, stop, bucket))
            elif bucket.adapts(name):
                self._adapted.append((start, stop, bucket))
            start = stop
        self._size = start
        self._buckets = list(buckets)
        self._dropout = torch.cat([bucket.dropout(name) for bucket in buckets])

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
        if self._whole:
            y = self._run_whole(stacked, groups, shared)
        elif noise is not None and self._dropout.any():
            y = self._run_with_dropout(groups.fan_out(stacked) if shared else stacked, rows, noise)
        else:
            y = self._run_frozen(stacked, groups, shared)
        return y.reshape(self._size * rows, *x.shape[1:-1], y.shape[-1])

    def _run_frozen(self, x: Tensor, groups: Groups, shared: bool) -> Tensor:
        segments = [Segment(start, stop, groups.runs(start, stop) if shared else None) for start, stop, _ in self._adapted]
        stacks = [tensor for _, _, bucket in self._adapted for tensor in bucket.low_rank(self.name)]
        fan_out = groups.fan_out if shared else None
        return PackedLinear.apply(x, self._weight, self._bias, fan_out, segments, *stacks)  # pyright: ignore[reportReturnType]

    def _run_with_dropout(self, x: Tensor, rows: int, noise: Noise) -> Tensor:
        """The updates read x through masks of their own, the frozen product reads it as it is."""
        dropped = noise.dropout(f"{self.name}.lora", x.reshape(self._size * rows, -1, x.shape[-1]), self._dropout)
        dropped = dropped.reshape(x.shape)
        update = torch.zeros(*x.shape[:-1], self._weight.shape[0], device=x.device, dtype=x.dtype)
        parts = list(update.split([len(bucket) for bucket in self._buckets]))
        for start, stop, bucket in self._adapted:
            parts[self._buckets.index(bucket)] = lora_update(dropped[start:stop], *bucket.low_rank(self.name))
        return torch.nn.functional.linear(x, self._weight, self._bias) + torch.cat(parts)

    def _run_whole(self, x: Tensor, groups: Groups, shared: bool) -> Tensor:
        """Some adapters train the layer whole: their rows go through weights of their own."""
        x = groups.fan_out(x) if shared else x
        pieces: list[Tensor] = []
        done = 0
        for start, stop, bucket in [*self._whole, (self._size, self._size, None)]:
            if start > done:
                adapted = [part for part in self._adapted if done <= part[0] < start]
                segments = [Segment(first - done, last - done, None) for first, last, _ in adapted]
                stacks = [tensor for _, _, b in adapted for tensor in b.low_rank(self.name)]
                pieces.append(PackedLinear.apply(x[done:start], self._weight, self._bias, None, segments, *stacks))  # pyright: ignore[reportArgumentType]
            if bucket is not None:
                weight, bias = bucket.leaves[f"{self.name}.weight"], bucket.leaves.get(f"{self.name}.bias")
                own = x[start:stop]
                y = own @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), own, weight.mT)
                pieces.append(y)
            done = stop
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
