"""All numbers of a pack in a few vectors: parameters, gradients, up-projections times their scale.

One vector for all adapters, modules and buckets, so that what is done to every number (the optimiser, the scales)
is one operation, whatever the model; and the products of a layer write their gradients where the optimiser reads them.

Over a base of half precision the parameters, their gradients and moments are float32 all the same, or small updates
would be rounded away. The model then computes with copies in the type of each weight, rebuilt after each step, so
that no activation is copied to float32.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rankwise.pack.groups import SharedBatches
from rankwise.pack.precision import HALF
from rankwise.pack.resolved import AdapterState, Resolved
from rankwise.pack.stacks.bucket import Bucket
from rankwise.pack.stacks.types import rounded_stacks, types_of_stacks, types_of_weights
from rankwise.streams import stream


class Gradient:
    """The gradient of one stack. The first product of a step overwrites it, later ones add.

    Args:
        stack: (K, ...), a view of the vector of gradients.
        step: Holds whether the backward pass of a step runs. A model may differentiate inside its forward pass; what
            that would add here is no part of the step's gradient.
    """

    def __init__(self, stack: Tensor, step: list[bool]) -> None:
        self.stack, self._step = stack, step
        self._transposed = stack.mT if stack.dim() > 1 else stack  # made once: a view takes as long as a small product
        self._by_batch: tuple[Sequence[SharedBatches], list[Tensor]] = ((), [])
        self.fresh = True
        """Whether nothing was written in this step yet: what it holds is of an earlier one."""
        self.written: set[int] | None = None
        """The adapters that have a gradient, where they have run one after another; None for all."""

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add the batched product left @ right of (K, n, m) and (K, m, p)."""
        if not self._step[0]:
            return
        self._add(self.stack, left, right)
        self.fresh = False

    def add_transposed(self, left: Tensor, right: Tensor) -> None:
        """Add the transpose of left @ right: fast for up-projections, which lie transposed in the vectors."""
        if not self._step[0]:
            return
        self._add(self._transposed, left, right)
        self.fresh = False

    def add_by_batch(self, left: Tensor, x: Tensor, runs: Sequence[SharedBatches]) -> None:
        """Add left_k @ x_k, for left (K, n, m) and batches x (G, m, p) that several adapters read."""
        if not self._step[0]:
            return
        if runs is not self._by_batch[0]:
            self._by_batch = runs, [run.stacked(self.stack) for run in runs]
        for run, own in zip(runs, self._by_batch[1], strict=True):
            self._add(own, run.stacked(left), run.read(x))
        self.fresh = False

    def add_rows(self, values: Tensor) -> None:
        """Add the sums over rows of (K, rows, n)."""
        if self._step[0]:
            self.copy(values.sum(1))

    def add_at(self, places: tuple[Tensor, ...], values: Tensor) -> None:
        """Add values at places in the stack, which may be there several times."""
        if not self._step[0]:
            return
        if self.fresh:
            self.stack.zero_()
        self.stack.index_put_(places, values.to(self.stack.dtype), accumulate=True)
        self.fresh = False

    def _add(self, stack: Tensor, left: Tensor, right: Tensor) -> None:
        if left.dtype == stack.dtype:
            if self.fresh:
                torch.bmm(left, right, out=stack)
            else:
                stack.baddbmm_(left, right)
        elif self.fresh:
            stack.copy_(left @ right)
        else:
            stack.add_(left @ right)

    def copy(self, value: Tensor) -> None:
        """Add a gradient that was computed elsewhere, as by autograd."""
        if self.fresh:
            self.stack.copy_(value)
        else:
            self.stack.add_(value)
        self.fresh = False

    def copy_one(self, k: int, value: Tensor) -> None:
        """Add one adapter's gradient, where adapters run one after another."""
        if self.fresh:
            self.stack.zero_()
            self.fresh, self.written = False, set()
        self.stack[k] += value
        if self.written is not None:
            self.written.add(k)

    def unused(self, size: int) -> list[int]:
        """The adapters, of so many, that have no gradient in this step."""
        if self.fresh:
            return list(range(size))
        return [] if self.written is None else [k for k in range(size) if k not in self.written]


class Store:
    """The vectors, and the buckets that know what lies where in them.

    Args:
        groups: The members of each bucket.
        model: The base, from which members without their own state start.
        states: Tensors to start from, by member name; those that are left out start as the member's settings say.
        device: Where to keep them.
        dtype: The model's type, for weights that have none to compute in (quantised ones). The vectors are float64
            where it is, else float32.
        half: Whether linear layers of a float32 model compute in bfloat16 (`rankwise.pack.layers.half`).
    """

    def __init__(
        self,
        groups: Iterable[Sequence[Resolved]],
        model: nn.Module,
        states: Mapping[str, AdapterState],
        device: torch.device,
        dtype: torch.dtype,
        *,
        half: bool = False,
    ) -> None:
        self.buckets = [Bucket(members) for members in groups]
        self.step_runs = [False]
        """Whether the backward pass of a step runs now."""
        self._types = types_of_stacks(self.buckets, model, dtype)
        if half:
            self._types |= dict.fromkeys(rounded_stacks(self.buckets, model), HALF)
        exact = torch.float32
        for other in (dtype, *self._types.values(), *types_of_weights(self.buckets)):
            exact = torch.promote_types(exact, other)
        theta = torch.zeros(self._lay_out(), device=device, dtype=exact)
        for bucket in self.buckets:
            bucket.fill_padding(theta)
            bucket.freeze(theta, states)
        members = [m for bucket in self.buckets for m in bucket.members]
        self.write(theta, {m.member.name: m.start(model, states.get(m.member.name, {})) for m in members})
        self._take(theta)
        self.anchor = theta.new_zeros(()).requires_grad_()
        """Makes autograd run the backward pass of layers whose gradients it is not given."""

    def _lay_out(self) -> int:
        """Lay out all stacks, up-projections first, since they are scaled together; return the vectors' length."""
        self._length = sum(map(len, self.buckets))
        end = 0
        for up in (True, False):
            for bucket in self.buckets:
                for key in bucket.shapes:
                    if (key in bucket.ups) == up:
                        end = bucket.place(key, end)
            if up:
                self._n_up = end
        return end

    def _take(self, theta: Tensor) -> None:
        self.theta = theta
        self.grads = torch.zeros_like(theta)
        self._up_theta, self._up_grads = self.theta[: self._n_up], self.grads[: self._n_up]
        scales = [
            bucket.scale(key.rpartition(".")[0], theta).expand(len(bucket), *bucket.shapes[key]).reshape(-1)
            for bucket in self.buckets
            for key in bucket.shapes
            if key in bucket.ups
        ]
        self._scale = torch.cat(scales) if scales else theta.new_zeros(0)
        self._scaled = torch.zeros_like(self._scale)
        others = {*self._types.values()} - {theta.dtype}
        self._copies = {dtype: torch.zeros_like(theta, dtype=dtype) for dtype in others}
        self._gradients = {
            (i, key): Gradient(bucket.view(self.grads, key), self.step_runs)
            for i, bucket in enumerate(self.buckets)
            for key in bucket.shapes
        }
        self.refresh()

    def __len__(self) -> int:
        return self._length

    def refresh(self) -> None:
        """Recompute the scaled up-projections, and the copies in other types, after parameters have changed."""
        n = self._n_up
        torch.mul(self._up_theta, self._scale, out=self._scaled)
        for copy in self._copies.values():
            copy[:n] = self._scaled
            copy[n:] = self.theta[n:]

    def low_rank(self, i: int, module: str, *, exact: bool = False) -> tuple[Tensor, Tensor]:
        """A (K, r, d_in) and s B (K, d_out, r) of a module in bucket i. They stay the same memory in training.

        Args:
            i: The bucket.
            module: The module.
            exact: Not in half precision, whatever the base is in.
        """
        return self.stack(i, f"{module}.A", exact=exact), self._up(i, f"{module}.B", exact)

    def _up(self, i: int, key: str, exact: bool) -> Tensor:
        """An up-projection times the scale."""
        copy = None if exact or key not in self._types else self._copies.get(self._types[key])
        return self.buckets[i].view(self._scaled if copy is None else copy, key)

    def tensors(self, i: int, module: str, *, exact: bool = False) -> dict[str, tuple[Tensor, Gradient | None]]:
        """What the variant has in a module in bucket i, up-projections times the scale, and where each one's gradient
        goes, None for what is frozen. Arguments as for `low_rank`."""
        bucket = self.buckets[i]
        found: dict[str, tuple[Tensor, Gradient | None]] = {}
        for one in bucket.variant(module).tensors:
            key = f"{module}.{one.name}"
            if not one.trained:
                found[one.name] = bucket.frozen[key], None
            else:
                stack = self._up(i, key, exact) if one.up else self.stack(i, key, exact=exact)
                found[one.name] = stack, self.gradient(i, key)
        return found

    def stack(self, i: int, key: str, *, exact: bool = False) -> Tensor:
        """The parameters under one key in bucket i: (K, ...). None of up-projections. Arguments as for `low_rank`."""
        copy = None if exact or key not in self._types else self._copies.get(self._types[key])
        return self.buckets[i].view(self.theta if copy is None else copy, key)

    def gradient(self, i: int, key: str) -> Gradient:
        """The stack of their gradients; for an up-projection with respect to s B."""
        return self._gradients[i, key]

    def begin(self) -> None:
        """Start a step: mark all gradients as not yet written."""
        for gradient in self._gradients.values():
            gradient.fresh, gradient.written = True, None

    def finish(self) -> None:
        """End the step: `grads` then holds the gradient of every parameter, zero where nothing was written."""
        for gradient in self._gradients.values():
            if gradient.fresh:
                gradient.stack.zero_()
        self._up_grads.mul_(self._scale)

    def unused(self) -> list[tuple[int, str, int]]:
        """Tensors without a gradient in this step: (bucket, key, adapter's place in the bucket)."""
        return [
            (i, key, k)
            for (i, key), gradient in self._gradients.items()
            if gradient.fresh or gradient.written is not None  # all of them have gradients otherwise
            for k in gradient.unused(len(self.buckets[i]))
        ]

    def used(self) -> Tensor:
        """For each tensor and adapter, in the order of the buckets, 1 where it has a gradient in this step, else 0."""
        missing = {*self.unused()}
        places = [(i, key, k) for i, key in self._gradients for k in range(len(self.buckets[i]))]
        return self.theta.new_tensor([place not in missing for place in places])

    def set_used(self, used: Tensor) -> None:
        """Say which tensors have a gradient in this step, where another process may have computed it: above 0 in what
        `used` gives."""
        counts = iter(used.tolist())
        for (i, _), gradient in self._gradients.items():
            written = {k for k in range(len(self.buckets[i])) if next(counts) > 0}
            gradient.fresh, gradient.written = not written, None if len(written) == len(self.buckets[i]) else written

    def keep(self, masks: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Leave only some adapters.

        Args:
            masks: For each bucket, which of its adapters stay.
            vectors: More vectors of the same layout (moments, best weights) to cut alike.

        Returns:
            The cut vectors.
        """
        old, all_vectors = self.buckets, [self.theta, *vectors]
        pairs = [(b, m, cut) for b, m in zip(old, masks, strict=True) if (cut := b.without(m)) is not None]
        self.buckets = [cut for _, _, cut in pairs]
        length = self._lay_out()
        result = [vector.new_zeros(length) for vector in all_vectors]
        for bucket, mask, cut in pairs:
            for key in bucket.shapes:
                for before, after in zip(all_vectors, result, strict=True):
                    cut.flat(after, key).copy_(bucket.flat(before, key)[mask])
        self._take(result[0])
        return result[1:]

    def copy_where(self, source: Tensor, target: Tensor, mask: Tensor) -> None:
        """Overwrite in one vector, from another, the numbers of the adapters where mask (K,) is true."""
        for bucket, own in zip(self.buckets, mask.split([len(b) for b in self.buckets]), strict=True):
            for key in bucket.shapes:
                old = bucket.flat(target, key)
                # Into place: no memory is taken that could run out half-way.
                torch.where(own.unsqueeze(1), bucket.flat(source, key), old, out=old)

    def norms(self, vector: Tensor) -> Tensor:
        """The norm of each adapter's part of a vector: (K,)."""
        return torch.cat(
            [
                torch.stack([torch.linalg.vector_norm(bucket.flat(vector, key), dim=1) for key in bucket.shapes]).norm(
                    dim=0
                )
                for bucket in self.buckets
            ]
        )

    def multiply(self, vector: Tensor, factor: Tensor) -> None:
        """Multiply each adapter's part of a vector with its own factor (K,), in place; factors may lie on the CPU."""
        factor = factor.to(vector.device, non_blocking=True)
        for bucket, own in zip(self.buckets, factor.split([len(b) for b in self.buckets]), strict=True):
            for key in bucket.shapes:
                bucket.flat(vector, key).mul_(own.view(-1, 1))

    def spread(self, values: Tensor) -> Tensor:
        """A vector with each adapter's value (K,) at all its numbers."""
        vector = torch.ones_like(self.theta)
        self.multiply(vector, values)
        return vector

    def rates(self, lr: Tensor) -> Tensor:
        """Each adapter's learning rate (K,) for all its numbers, times `head_lr_multiplier` and `lr_ratio` where they
        apply."""
        vector = self.spread(lr)
        for bucket in self.buckets:
            for key in bucket.shapes:
                times = [bucket.rate_of(key, k) for k in range(len(bucket))]
                if any(one != 1 for one in times):
                    bucket.flat(vector, key).mul_(vector.new_tensor(times).unsqueeze(1))
        return vector

    def decay(self, rates: Tensor, weight_decay: Tensor) -> None:
        """Shrink the parameters by each number's own rate (`rates`) times its adapter's weight decay (K,)."""
        self.theta.addcmul_(self.theta, rates * self.spread(weight_decay), value=-1)

    def read(self, vector: Tensor) -> dict[str, AdapterState]:
        """Every adapter's tensors in a vector, by member name."""
        return {m.member.name: b.read(vector, k) for b in self.buckets for k, m in enumerate(b.members)}

    def write(self, vector: Tensor, states: Mapping[str, AdapterState]) -> None:
        """Write every adapter's tensors, by member name, into a vector; the padding is not changed."""
        for bucket in self.buckets:
            for k, m in enumerate(bucket.members):
                bucket.write(vector, k, states[m.member.name])

    def randomise(self) -> None:
        """Fill A, B and what is zero with random numbers; perturb vectors and fully trained parameters slightly.

        Padding stays as it is.

        s B A has a seventh of the size of the weight, whatever s is: with larger updates attention saturates
        and rounding is blown up, to 1e-3 of the gradients of MiniLM at s = 32 in float32.
        """
        for bucket in self.buckets:
            for k, m in enumerate(bucket.members):
                state = bucket.read(self.theta, k)
                scales = {t.name: max(1.0, abs(t.scale)) for t in m.targets}
                for key, value in state.items():
                    draws = torch.rand(value.shape, generator=stream("probe", m.member.name, key)).to(value) - 0.5
                    anew = key not in m.trained_parameters and (value.ndim > 1 or not bool(value.any()))
                    size = value.shape[-1] ** 0.5 * (scales[key.rpartition(".")[0]] if key in bucket.ups else 1.0)
                    state[key] = draws / size if anew else value * (1 + 0.1 * draws)
                bucket.write(self.theta, k, state)
        self.refresh()
