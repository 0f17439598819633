"""K adapters trained in one pass over one frozen base.

A pack computes what `rankwise.lora.maths.lora_pack` computes, by definition: one adapter's forward pass mapped over the
stacked A and B. But the frozen products run once over all rows, and what lies before the first adapted layer runs once
for each batch.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.pack.batches import Batch, batch_tensors, call_model, lazily
from rankwise.pack.groups import Groups
from rankwise.pack.layers.half import Halves
from rankwise.pack.losses import PerAdapter, PerBatch, means_of_rows
from rankwise.pack.member import Member
from rankwise.pack.model.inspection import Inspections
from rankwise.pack.model.packed_model import PackedModel
from rankwise.pack.modes import statistics_frozen
from rankwise.pack.noise.keyed import Draws
from rankwise.pack.resolved import AdapterState, Resolved, resolve
from rankwise.pack.stacks.store import Store
from rankwise.pack.step.clipping import clip_gradients
from rankwise.pack.step.loss_scale import LossScale
from rankwise.pack.step.processes import Processes
from rankwise.pack.step.table import OPTIMISERS


class Pack:
    """K adapters over one base, as stacks.

    Args:
        model: The base. Its weights, buffers and modes are as before whenever the pack is not attached.
        members: The adapters; names unique.
        loss: loss(outputs, batch) of ONE adapter: a scalar, or one value a row.
        states: Tensors to start from, by member name; others start from their initialisation.
        call: How the model is run on a batch.
        precision: One of `rankwise.pack.precision.PRECISIONS`.
        inspections: What other packs over this base have found of it, in the state in which it is; None inspects it.

    Raises:
        PackError: Two members have one name, members have different optimisers, or a layer can't be packed.
        TargetError: A pattern matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[Member],
        loss: PerBatch,
        *,
        states: Mapping[str, AdapterState] | None = None,
        call: Callable[[nn.Module, Batch], Tensor] = call_model,
        precision: str = "float32",
        inspections: Inspections | None = None,
    ) -> None:
        names = [member.name for member in members]
        if not members or len(set(names)) != len(names):
            raise PackError(f"A pack needs members with their own names; got {names}.")
        optimisers = {member.optimiser.name for member in members}
        if len(optimisers) > 1:
            raise PackError(
                f"The members have optimisers {sorted(optimisers)}; those of a pack have one. Make two packs."
            )
        self.loss = PerAdapter(loss, "loss", spare=True)
        parameters = list(model.parameters())
        # A model of quantised weights only has no type of its own to train in.
        dtypes = [p.dtype for p in parameters if p.is_floating_point()]
        self.device, computes_in = parameters[0].device, (dtypes or [torch.get_default_dtype()])[0]
        seeds = list(dict.fromkeys(member.seed for member in members))
        by_key: dict[object, list[Resolved]] = {}
        for member in members:
            resolved = resolve(model, member)
            by_key.setdefault(resolved.bucket_key(), []).append(resolved)
        # Sorted by seed, so that adapters which read one batch lie side by side.
        groups = [sorted(group, key=lambda m: seeds.index(m.member.seed)) for group in by_key.values()]
        half = precision == "bf16"
        with statistics_frozen(model):
            self.store = Store(groups, model, states or {}, self.device, computes_in, half=half)
        self.dtype = self.store.theta.dtype
        """The type of what is trained."""
        scaled = any(p.dtype == torch.float16 for p in parameters)
        self._loss_scale = LossScale(len(self), self.device) if scaled else None
        self._optimiser = OPTIMISERS[optimisers.pop()](self.store)
        self._running = PackedModel(model, self.store, call, Halves() if half else None, inspections)
        self._prepare()
        self.steps = 0
        self.step_rows = 1
        """Rows of each batch that a training step passes at once: so many fit in evaluations too."""
        self.evaluation_bytes: dict[int, dict[str, float]] = {}
        """Measurements of evaluations, by the number of adapters."""

    def _prepare(self) -> None:
        """Set up everything that depends on the pack's adapters."""
        self.seeds = list(dict.fromkeys(m.member.seed for m in self.members))
        batch_of = [self.seeds.index(m.member.seed) for m in self.members]
        self._by_seed = Groups(batch_of, len(self.seeds), self.device)
        self._together = Groups([0] * len(batch_of), 1, self.device)

    @property
    def notes(self) -> list[str]:
        """Notes for the user about this pack."""
        return [*self._running.notes, *self.loss.notes]

    @property
    def members(self) -> list[Resolved]:
        """The adapters in the order in which every vector of the pack holds them."""
        return [member for bucket in self.store.buckets for member in bucket.members]

    @property
    def batch_of(self) -> list[int]:
        """For each adapter the place of its seed in `seeds`."""
        return self._by_seed.batch_of

    def __len__(self) -> int:
        return len(self.store)

    @contextmanager
    def attached(self, example: Batch, *, training: bool) -> Generator[None]:
        """Run the model as a pack inside this block; afterwards it is the plain base again.

        Args:
            example: Two rows or more, to find out how the model runs.
            training: Train mode (the base's own dropout on; BatchNorm stays in eval mode) or eval mode.

        Raises:
            PackError: The model can't be trained in a pack.
        """
        with self._running.attached(example, self.seeds, training=training):
            yield

    def with_products(self, data: Batch) -> Batch:
        """Return a data set that also holds what is the same for a row in every step, if anything is; inside
        `attached`."""
        chain = self._running.chain
        return data if chain is None else chain.with_products(data)

    def step(
        self, batch: Batch, lr: Tensor, weight_decay: Tensor | None, max_norm: Tensor | None, rows: int | None = None
    ) -> Tensor:
        """One training step of every adapter, `gradients` and `update`, inside `attached(training=True)`.

        Args:
            batch: As for `gradients`.
            lr: As for `update`, like what follows.
            weight_decay: Weight decay.
            max_norm: Limits on the norms of gradients.
            rows: As for `gradients`.

        Returns:
            Each adapter's loss, before the step.
        """
        losses = self.gradients(batch, rows)
        self.update(lr, weight_decay, max_norm)
        return losses

    def update(self, lr: Tensor, weight_decay: Tensor | None, max_norm: Tensor | None) -> None:
        """The second half of a step: clip the gradients, and let the optimiser move every adapter.

        Args:
            lr: Learning rate of each adapter. These vectors may lie on the CPU, whatever the device: reading them then
                waits for nothing.
            weight_decay: Each adapter's, or None when all are zero.
            max_norm: Each adapter's limit on the norm of its gradient, or None when none has one.
        """
        settled = None if self._loss_scale is None else self._loss_scale.settle(self.store)
        left_out = None if settled is None else settled.overflowed
        vectors = [self.store.theta, *self._optimiser.vectors]
        before = None if left_out is None else [vector.clone() for vector in vectors]
        if max_norm is not None:
            clip_gradients(self.store, max_norm)
        self._optimiser.step_used(lr, weight_decay)
        # From here on no memory is taken that could run out.
        if left_out is not None and before is not None:
            for old, new in zip(before, vectors, strict=True):
                self.store.copy_where(old, new, left_out)
        if self._loss_scale is not None and settled is not None:
            self._loss_scale.load_state(settled.next)
        self.store.refresh()
        self.steps += 1

    def gradients(self, batch: Batch, rows: int | None = None, processes: Processes | None = None) -> Tensor:
        """The first half of a step: every adapter's gradients into the store, inside `attached(training=True)`; of a
        base in float16 times the factors of `LossScale`.

        Args:
            batch: A batch for each of `seeds`: every tensor (G, rows, ...).
            rows: How many rows of each batch to pass through the model at once; None for all. The gradients of
                the parts are added up: the step is the same.
            processes: Where several train this pack: each passes its part of the batch, and all have the gradients and
                losses of the whole.

        Returns:
            Each adapter's loss.
        """
        n = batch_tensors(batch)[0].shape[1]
        self.store.begin()
        if processes is None and (rows is None or rows >= n):
            outputs = self._running.forward(batch, self._by_seed, Draws(self.seeds, self.steps))
            values = self.loss.values(outputs, batch, self._by_seed)
            losses = means_of_rows(values.detach())
            # The gradients of the means, without a node of autograd's for them.
            self._running.backward(values, self._start(values, outputs, len(self) / values.numel()))
            self.store.finish()
        else:
            losses = self._accumulate(batch, n, rows or n, processes)
        return losses.detach()

    def _start(self, losses: Tensor, outputs: Tensor, share: float) -> Tensor:
        """The gradients that the backward pass of losses starts from: the share that each has in its adapter's, times
        the factors of `LossScale` for a base in float16. Losses have no gradient where this step uses no adapted layer,
        as where LayerDrop leaves all of them out.

        Raises:
            PackError: They have none for another reason.
        """
        if not outputs.requires_grad and not (self._running.draws or self._optimiser.has_moved()):
            raise PackError(
                "The outputs have no gradient: no adapted layer has a part in them, or the model detaches them. Adapt "
                "layers that the outputs depend on."
            )
        if outputs.requires_grad and not losses.requires_grad:
            raise PackError(
                "The loss has no gradient: it doesn't depend on the outputs, or is a count, a truth value, a detached "
                "tensor or a plain number. Return a tensor computed from the outputs."
            )
        start = torch.full_like(losses, share)
        return start if self._loss_scale is None else self._loss_scale.enlarge(start)

    def _accumulate(self, batch: Batch, n: int, rows: int, processes: Processes | None) -> Tensor:
        """Gradients and losses of a batch that passes in parts."""
        total, weight = torch.zeros((2, len(self)), device=self.device, dtype=self.dtype)
        own = range(n) if processes is None else processes.part(n)
        # About the weight of the whole: sums in its place would overflow in float16 where the mean does not.
        expected: Tensor | float = 1.0 if self._loss_scale is None else float(n)
        for start in own[::rows]:
            stop = min(start + rows, own.stop)
            part = lazily(batch, lambda t, start=start, stop=stop: t[:, start:stop])
            outputs = self._running.forward(part, self._by_seed, Draws(self.seeds, self.steps, start, stop - start, n))
            sums, counts = self.loss.totals(outputs, part, self._by_seed)
            if start == 0 and self._loss_scale is not None and processes is None:
                expected = torch.where(counts > 0, counts.detach() * n / rows, float(n))
            sound = next((k for k in range(len(self)) if k not in self.loss.failed), None)
            if self.loss.scalar and sound is not None:
                one = Groups([self.batch_of[sound]], len(self.seeds), self.device)
                self.loss.require_mean(outputs[sound : sound + 1].detach(), part, one)
            losses = sums / expected
            self._running.backward(losses, self._start(losses, outputs, 1.0))
            total, weight = total + sums.detach(), weight + counts.detach()
        self.store.finish()
        if processes is not None:
            used = self.store.used()
            processes.add_up([self.store.grads, total, weight, used])
            self.store.set_used(used)
        self.store.multiply(self.store.grads, expected / weight)
        return total / weight

    @torch.no_grad()
    def evaluate(
        self, batch: Batch, functions: Sequence[PerAdapter], *, by_seed: bool = False
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Values of each function for every adapter on one batch that all read, or on a batch for each seed; inside
        `attached(training=False)`.

        Args:
            batch: Every tensor (rows, ...); by seed, as for `gradients`.
            functions: Losses or metrics.
            by_seed: Whether there is a batch for each of `seeds`.

        Returns:
            For each function what `PerAdapter.rows` gives.
        """
        if by_seed:
            outputs = self._running.forward(batch, self._by_seed, Draws(self.seeds, self.steps))
            return [function.rows(outputs, batch, self._by_seed) for function in functions]
        shared = lazily(batch, lambda t: t.unsqueeze(0))
        outputs = self.outputs(batch)
        return [function.rows(outputs, shared, self._together) for function in functions]

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """Outputs (K, rows, ...) of all adapters on one batch, as for `evaluate`."""
        shared = lazily(batch, lambda t: t.unsqueeze(0))
        return self._running.forward(shared, self._together, Draws(self.seeds[:1], self.steps))

    def rows(self) -> Tensor:
        """A copy of all parameters, for `copy_rows`, `states` and `keep`."""
        return self.store.theta.clone()

    def copy_rows(self, target: Tensor, mask: Tensor) -> None:
        """Overwrite in `target` (from `rows`) the adapters where mask is true with their present parameters."""
        self.store.copy_where(self.store.theta, target, mask)

    def states(self, rows: Tensor | None = None) -> dict[str, AdapterState]:
        """Every adapter's tensors by name, from `rows` or as they are now."""
        return self.store.read(self.store.theta if rows is None else rows)

    def gradient_norms(self) -> Tensor:
        """The norm of each adapter's gradient in the last step, over all its tensors: (K,)."""
        return self.store.norms(self.store.grads)

    def vector_of(self, states: Mapping[str, AdapterState]) -> Tensor:
        """The vector that holds these tensors, laid out as `rows`: the inverse of `states`."""
        rows = torch.zeros_like(self.store.theta)
        self.store.write(rows, states)
        return rows

    def optimiser_state(self) -> dict[str, AdapterState]:
        """Every adapter's moments by its name, on the CPU."""
        return self._optimiser.state()

    def stuck(self, steps: int) -> Tensor:
        """The adapters whose gradients were not finite in so many steps in a row, and so did not move: (K,)."""
        if self._loss_scale is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.device)
        return self._loss_scale.left_out >= steps

    def scaling_state(self) -> dict[str, Tensor]:
        """The state of loss scaling, vectors with an entry for each adapter; empty where losses aren't scaled."""
        return {} if self._loss_scale is None else self._loss_scale.state()

    def load_scaling(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `scaling_state` gave."""
        if self._loss_scale is not None:
            self._loss_scale.load_state(state)

    def load(self, states: Mapping[str, AdapterState], optimiser: Mapping[str, AdapterState], steps: int) -> None:
        """Go on from elsewhere: parameters as `states`, moments as `optimiser_state` gave them, after so many steps."""
        self.store.write(self.store.theta, states)
        self.store.refresh()
        self._optimiser.load_state(optimiser, steps)
        self.steps = steps

    def keep(self, mask: Tensor, rows: Tensor | None = None) -> Tensor | None:
        """Cut out the adapters where mask is false; the others continue as if nothing had happened.

        Inside `attached` no layer may lose its last adapter; outside any may leave.

        Args:
            mask: (K,), true for those that stay; at least one must.
            rows: A copy from `rows` to be cut alike.

        Returns:
            The cut copy.
        """
        masks = list(mask.split([len(bucket) for bucket in self.store.buckets]))
        kept = self._optimiser.vectors + ([] if rows is None else [rows])
        cut = self.store.keep(masks, kept)
        n = len(self._optimiser.vectors)
        self._optimiser.replace_vectors(cut[:n])
        if self._loss_scale is not None:
            self._loss_scale.keep(mask)
        self._running.prepare()
        self._prepare()
        return None if rows is None else cut[n]
