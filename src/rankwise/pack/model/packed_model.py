"""A model run as a pack: what is put in place of its modules' forwards, and the forward pass of all adapters.

What lies before the branch point runs once for each batch, what lies after it once for each adapter.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankwise.errors import PackError
from rankwise.lora.layer_types.quantised import keep_unpacked
from rankwise.lora.targets.modules import submodule
from rankwise.pack.batches import Batch, lazily, mapped, rows_of, stacked, tensors_of
from rankwise.pack.groups import Groups
from rankwise.pack.layers.choose import PackedLayer, called_without_rows, is_one_layer, packed_layer
from rankwise.pack.layers.half import Halves, halved
from rankwise.pack.memory import ran_out
from rankwise.pack.model.inspection import Inspection, inspect_model
from rankwise.pack.model.one_by_one import OneByOne, backward_once
from rankwise.pack.model.probe import coarsest, same
from rankwise.pack.model.trace import DOOR, Branch, find_branch, find_without_rows, form_of, has_no_rows, trace
from rankwise.pack.modes import set_mode, statistics_frozen
from rankwise.pack.noise.forwards import Forward, replaced_forwards
from rankwise.pack.noise.generators import Generators
from rankwise.pack.noise.keyed import Draws, Noise, answered
from rankwise.pack.resolved import Resolved
from rankwise.pack.stacks.store import Store
from rankwise.streams import stream

Call = Callable[[nn.Module, Batch], Tensor]
"""How a model is run on a batch."""


class _NewArguments(Exception):  # noqa: N818  (no error: the branch point is looked for again)
    """A block is called with arguments that no earlier pass had."""


class PackedModel:
    """One model under the adapters of a store.

    Args:
        model: The base. It is as before whenever the pack is not attached.
        store: The pack's numbers.
        call: How the model is run on a batch.
        halves: Where linear layers compute in bfloat16, the numbers they share; else None.
    """

    def __init__(self, model: nn.Module, store: Store, call: Call, halves: Halves | None = None) -> None:
        self._model, self._store, self._call, self._halves = model, store, call, halves
        self._noise = Noise()
        self._generators = Generators(model)
        self._own_stream = False
        self._looked_in_training = False
        self._branch: Branch | None = None
        self._alone: OneByOne | None = None
        self._alone_sure = False
        self._forwards: dict[str, Forward] = {}
        self._without_rows: Mapping[str, torch.Size] = {}
        self.notes: list[str] = []  # what a user should know of how the pack runs
        self.prepare()

    def prepare(self) -> None:
        """Set up everything that follows from which adapters are in the store."""
        members = self._members()
        targets = {t.name: t for m in members for t in m.targets}
        self._uncallable = next((name for name, t in targets.items() if t.reader is not None or t.ties), None)
        names = [name for name, t in targets.items() if t.reader is None]
        whole = [name.rpartition(".")[0] for m in members for name in m.whole]
        self._modules = {name: submodule(self._model, name) for name in (*names, *whole)}
        for name, module in self._modules.items():
            # Kept from the start: while the pack is attached, `module.forward` is the pack's own.
            self._forwards.setdefault(name, module.forward)
        self._layers = self._made(self._halves)
        if self._alone is not None:
            self._alone = OneByOne(self._model, self._store, self._call)
        if self._branch is not None and self._branch.inside and self._branch.name not in self._modules:
            self._branch = None  # the rows parted in a layer that nothing adapts any more

    def _made(self, halves: Halves | None) -> dict[str, PackedLayer]:
        """The layers as they run in the pack, in bfloat16 or in the type of their weights."""
        with statistics_frozen(self._model):
            return {
                name: packed_layer(name, module, self._store, self._forwards[name], halves)
                for name, module in self._modules.items()
            }

    def _members(self) -> list[Resolved]:
        return [member for bucket in self._store.buckets for member in bucket.members]

    def __len__(self) -> int:
        return len(self._store)

    @contextmanager
    def attached(self, example: Batch, seeds: Sequence[int], *, training: bool) -> Generator[None]:
        """Run the model as a pack inside this block; afterwards it is the plain base again.

        Args:
            example: Two rows or more, to find out how the model runs.
            seeds: Those of the pack.
            training: Train mode (the base's own dropout on; BatchNorm stays in eval mode) or eval mode.

        Raises:
            PackError: The model can't be trained in a pack.
        """
        modes = {module: module.training for module in self._model.modules()}
        required = {p: p.requires_grad for p in self._model.parameters()}
        try:
            self._model.requires_grad_(False)
            keep_unpacked(self._model)
            set_mode(self._model, training)
            if self._branch is None or (training and not self._looked_in_training):
                self._inspect(example, seeds, training)
            # The caller may be inside no_grad.
            with self._replaced(training) as self._attached, torch.enable_grad():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, requires_grad in required.items():
                parameter.requires_grad_(requires_grad)

    @contextmanager
    def _replaced(self, training: bool) -> Generator[ExitStack]:
        """The model as a pack: adapted layers, the blocks where rows part, keyed noise."""
        self._training = training
        with ExitStack() as stack:
            self._replace(stack)
            yield stack

    def _replace(self, stack: ExitStack) -> None:
        if self._alone is None:
            stack.enter_context(replaced_forwards(self._modules, self._packed))
            blocks = {name: self._model.get_submodule(name) for name in (self._branch or DOOR).blocks}
            stack.enter_context(replaced_forwards(blocks, self._branch_block))
            if self._halves is not None:
                stack.enter_context(halved(self._model, self._modules, self._halves))
        if self._training:
            noisy = {name: self._model.get_submodule(name) for name in self._keyed}
            stack.enter_context(replaced_forwards(noisy, answered(self._noise)))

    def _packed(self, name: str, forward: Forward) -> Forward:
        branch = self._branch or DOOR
        shared = branch.inside and branch.name == name
        noise = self._noise if self._training else None

        def call(x: Tensor, *rest: Any, **named: Any) -> Tensor:
            # Looked up at every call: adapters that leave the pack leave its layers.
            layer = self._layers[name]
            if has_no_rows(x, self._without_rows.get(name), len(self) * self._rows):
                return called_without_rows(layer, x, self._groups, self._rows, noise, *rest, **named)
            n = self._groups.n_batches if shared else len(self)
            if x.shape[0] % (n * self._rows):
                raise PackError(
                    f'"{name}" got an input of shape {tuple(x.shape)}, which isn\'t made of {self._rows} rows for each '
                    f"of {n}: the model gives it a part of the rows, which a pack can't tell apart. Adapt other layers."
                )
            return layer(x, self._groups, shared, noise, *rest, **named)

        return call

    def _branch_block(self, name: str, forward: Forward) -> Forward:
        branch = self._branch or DOOR
        places, form = branch.blocks[name], branch.forms[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            n = self._groups.n_batches
            if n != len(self):
                flat, spec = tree_flatten((args, kwargs))
                if form_of(args, kwargs, flat) != form:
                    raise _NewArguments
                for i, t in enumerate(flat):
                    if not isinstance(t, Tensor):
                        continue
                    # transformers makes no mask for a batch without gaps.
                    if i not in places:
                        raise _NewArguments
                    if places[i] and t.shape[0] == places[i] * n * self._rows:
                        flat[i] = self._groups.fan_out(t.unflatten(0, (n, -1))).flatten(0, 1)
                args, kwargs = tree_unflatten(flat, spec)
            return forward(*args, **kwargs)

        return call

    def forward(self, batch: Batch, groups: Groups, draws: Draws, *, knows_arguments: bool = False) -> Tensor:
        """Outputs (K, rows, ...) of all adapters, inside `attached`.

        Args:
            batch: Every tensor (G, rows, ...).
            groups: Which adapter reads which batch.
            draws: What the noise is keyed on.
            knows_arguments: Whether blocks with new arguments are an error.
        """
        if self._alone is not None:
            alone = self._alone
            return torch.stack([self._forward_alone(k, batch, groups, draws, alone) for k in range(len(self))])
        self._groups, self._rows = groups, tensors_of(batch)[0].shape[1]
        try:
            outputs = self._forward(batch, groups, draws)
        except _NewArguments:
            if knows_arguments:
                raise
            self._look_again(batch, groups)
            outputs = self._forward(batch, groups, draws)
        if outputs.shape[0] != len(self) * self._rows:
            raise ValueError(f"outputs of shape {tuple(outputs.shape)} for {len(self)} adapters of {self._rows} rows")
        return outputs.unflatten(0, (len(self), -1))

    def _forward(self, batch: Batch, groups: Groups, draws: Draws) -> Tensor:
        branch = self._branch or DOOR
        self._noise.before = branch.before
        self._noise.begin(groups, draws)
        flat = lazily(batch, lambda t: (t if branch.name else groups.fan_out(t)).flatten(0, 1))
        return self._call(self._model, flat)

    def _forward_alone(
        self,
        k: int,
        batch: Batch,
        groups: Groups,
        draws: Draws,
        alone: OneByOne,
        then: Callable[[Tensor], object] = lambda outputs: None,
    ) -> Tensor:
        g = groups.batch_of[k]
        self._noise.before = ()
        own = replace(draws, seeds=draws.seeds[g : g + 1])
        self._noise.begin(Groups([0], 1, self._store.theta.device), own)
        key = own.seeds[0], draws.step, draws.first
        # A copy: a model may write to its inputs, and the next adapter reads them too.
        rows = lazily(batch, lambda t: t[g].clone())
        with self._generators.keyed(*key) if self._training and self._own_stream else nullcontext():
            return alone(k, rows, self._noise if self._training else None, then)

    def _look_again(self, batch: Batch, groups: Groups) -> None:
        """Find the branch point anew, for a batch whose blocks get new arguments; else the rows part at the door."""
        self._attached.close()
        rows = mapped(batch, lambda t: t.flatten(0, 1))
        n = len(tensors_of(rows)[0])
        first, larger = (
            trace(self._model, lambda m=m: self._call(self._model, rows_of(rows, m)), m) for m in (n, n + 1)
        )
        self._branch = (self._branch or DOOR).joined(find_branch(self._model, self._modules, first, larger))
        own = [mapped(batch, lambda t, g=g: t[g]) for g in range(groups.n_batches)]
        if self._branch.name and self._mismatch(own, groups, training=False):
            self._branch = DOOR
        set_mode(self._model, self._training)
        self._groups, self._rows = groups, tensors_of(batch)[0].shape[1]
        self._replace(self._attached)

    def backward(self, losses: Tensor) -> None:
        """Add the gradients of each adapter's loss to the store."""
        # Each adapter's loss depends on its own rows only, so the gradient of the sum is each one's own gradient.
        self._noise.backward()
        self._store.step_runs[0] = True
        try:
            # Not autograd.grad: reentrant checkpointing can't be differentiated by given inputs.
            if self._alone is None or self._alone_sure:
                torch.autograd.backward(losses.sum())
            else:
                backward_once(self._model, losses.sum())
                self._alone_sure = True
        finally:
            self._store.step_runs[0] = False
        if self._alone is not None:
            self._alone.collect()
            return
        for leaf, gradient in [pair for layer in self._layers.values() for pair in layer.leaves]:
            if leaf.grad is not None:
                gradient.copy(leaf.grad)
                leaf.grad = None

    def _inspect(self, example: Batch, seeds: Sequence[int], training: bool) -> None:
        """Find where the model draws noise and where the rows part, and hold the pack against its adapters alone."""
        found = inspect_model(self._model, lambda batch: self._call(self._model, batch), example, training)
        self._looked_in_training = training
        self._alone = None
        self._keyed = list(found.dims) if training else []
        self._own_stream = training and bool(found.unkeyed)
        self._without_rows = find_without_rows(found.first, found.larger)
        # Where the input has no rows, each adapter's copy of it is one.
        rowless = {f"{name}.lora": (0,) for name in self._without_rows if name in self._modules}
        self._noise.dims = {**found.dims, **found.dims_of_inputs(self._modules), **rowless}
        self._branch = self._choose(example, seeds, found)
        set_mode(self._model, training)

    def _choose(self, example: Batch, seeds: Sequence[int], found: Inspection) -> Branch:
        """The latest branch point at which the pack equals its adapters alone; at none, they run one by one."""
        order = found.first.order
        odd = next((n for n in self._modules if n in order and self._noise.dims.get(f"{n}.lora", ()) != (0,)), None)
        problem = "a module with weights of its own is never called, or has modules inside"
        if found.unkeyed:
            problem = f"{found.unkeyed}: each has a stream of random numbers of its own"
        elif found.rowless and len(seeds) > 1:
            problem = f"{found.rowless}, and the seeds differ"
        elif self._uncallable is not None:
            problem = f'the weight of "{self._uncallable}" is read without calling the layer, or shared by several'
        elif odd is not None:
            problem = f'"{odd}" has not the rows of the batch first'
        elif all(name in order and is_one_layer(module) for name, module in self._modules.items()):
            branch = find_branch(self._model, self._modules, found.first, found.larger)
            batches = [rows_of(example, 2, start=g) for g in range(len(seeds))]
            by_seed = [seeds.index(m.member.seed) for m in self._members()]
            # A step gives each seed its own batch, an evaluation gives all adapters one. Where there are as many seeds
            # as adapters, only the second repeats rows.
            layouts = [by_seed] if len(seeds) == 1 else [by_seed, [0] * len(self)]
            for tried in [branch, DOOR] if branch.name else [DOOR]:
                self._branch = tried
                for batch_of in layouts:
                    groups = Groups(batch_of, max(batch_of) + 1, self._store.theta.device)
                    own = self._looked_in_training and batch_of is by_seed
                    problem = self._mismatch(batches[: groups.n_batches], groups, seeds, training=own)
                    if problem:
                        break
                else:
                    return tried
        dropping = [m for m in self._members() if m.member.lora is not None and m.member.lora.dropout]
        tied = next((t.name for m in dropping for t in m.targets if t.ties), None)
        if tied is not None:
            raise PackError(
                f'The weight of "{tied}" is shared by several modules; in a pack its adapter can\'t have dropout of '
                "its own. Set dropout to 0, or copy the weight first."
            )
        if unread := {t.name for m in dropping for t in m.targets if t.reader is not None}:
            self.notes.append(
                f"Dropout doesn't act on {', '.join(sorted(unread))}: these weights are read without calling the layer."
            )
        if len(self) > 1:
            what = "adapters" if all(m.member.lora is not None for m in self._members()) else "runs"
            self.notes.append(f"The {what} run one after another, since {problem}.")
        self._alone = OneByOne(self._model, self._store, self._call)
        return DOOR

    def _mismatch(
        self, batches: Sequence[Batch], groups: Groups, seeds: Sequence[int] = (0,), *, training: bool
    ) -> str:
        """Why a pack with random numbers in all its tensors isn't its adapters alone; empty where it is.

        Args:
            batches: One for each of the groups.
            groups: Which adapter reads which batch.
            seeds: For noise.
            training: Whether outputs are compared in train mode, and gradients too; else outputs in eval mode.
        """
        store, dtype = self._store, coarsest(self._model)
        before = store.theta.clone()
        halves, layers = self._halves, self._layers
        if halves is not None:
            # Rounding to bfloat16 would hide differences.
            self._halves, self._layers = None, self._made(None)
        store.randomise()
        alone = OneByOne(self._model, store, self._call)
        joined, draws = stacked(batches), Draws([*seeds, *[0] * groups.n_batches][: groups.n_batches], 0)
        # Gradients of half precision may overflow, and tell little.
        gradients = training and torch.finfo(dtype).bits >= 32
        set_mode(self._model, training)
        try:
            with torch.set_grad_enabled(gradients):
                try:
                    with self._replaced(training):
                        store.begin()
                        ours = self.forward(joined, groups, draws, knows_arguments=True)
                        weights = torch.rand(ours.shape[1:], generator=stream("probe", "weights")).to(ours)
                        if gradients:
                            self.backward((ours * weights).flatten(1).sum(1))
                        store.finish()
                        of_pack = store.grads.clone()
                except (RuntimeError, ValueError, IndexError, TypeError, PackError, _NewArguments) as error:
                    if ran_out(error):
                        raise  # no fault of the model's
                    return "the model can't compute the rows of all of them in one forward pass"

                def then(outputs: Tensor) -> None:
                    self._noise.backward()
                    if gradients:
                        (outputs * weights).sum().backward()

                self._alone = alone
                with self._replaced(training):
                    store.begin()
                    for k, member in enumerate(self._members()):
                        theirs = self._forward_alone(k, joined, groups, draws, alone, then)
                        if not same(ours[k].detach(), theirs.detach(), dtype):
                            return f'the outputs of "{member.member.name}" in the pack differ from its own'
                    alone.collect()
                    store.finish()
            difference, size = store.norms(of_pack - store.grads), store.norms(store.grads)
            if gradients and not bool((difference <= 1e4 * torch.finfo(dtype).eps * size).all()):
                return "the gradients in the pack differ from those of its adapters alone"
            return ""
        finally:
            self._alone = None
            self._halves, self._layers = halves, layers
            store.theta.copy_(before)
            store.refresh()
