"""A model run as a pack: what is put in place of its modules' forwards, and the forward pass of all adapters.

What lies before the branch point runs once for each batch, what lies after it once for each adapter.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from rankwise.lora.layer_types.quantised import keep_unpacked
from rankwise.lora.targets.modules import submodule
from rankwise.pack.batches import Batch, batch_tensors, lazily, mapped, rows_from, stacked
from rankwise.pack.groups import Groups
from rankwise.pack.layers.choose import PackedLayer, is_one_layer, packed_layer
from rankwise.pack.layers.half import Halves, halved
from rankwise.pack.model.base_state import BaseState
from rankwise.pack.model.chain import ENGINE, Chain, chain_of
from rankwise.pack.model.comparing import CannotJoin, difference
from rankwise.pack.model.inspection import Inspections, ModelInspection, SharedCall
from rankwise.pack.model.one_by_one import OneByOne, acting_dropout, backward_once
from rankwise.pack.model.parting import NewArguments, Passing, packed_forward, parting
from rankwise.pack.model.probe import coarsest
from rankwise.pack.model.trace import DOOR, Branch, find_branch, find_without_rows, trace
from rankwise.pack.model.turns import Turns, watched
from rankwise.pack.modes import left_as_found, set_mode, statistics_frozen
from rankwise.pack.noise.answers import NoiseMode
from rankwise.pack.noise.forwards import Forward, replaced_forwards
from rankwise.pack.noise.generators import Generators
from rankwise.pack.noise.keyed import Draws, Noise, answer_of, answered
from rankwise.pack.resolved import Resolved
from rankwise.pack.stacks.store import Store

MOST_ROWS = 32
"""Rows on which it is looked whether they mix, at most, unless an example has more."""


class PackedModel:
    """One model under the adapters of a store.

    Args:
        model: The base. It is as before whenever the pack is not attached.
        store: The pack's numbers.
        call: How the model is run on a batch.
        halves: Where linear layers compute in bfloat16, the numbers they share; else None.
        inspections: Those of the packs over this base; None inspects it anew.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        call: SharedCall,
        halves: Halves | None = None,
        inspections: Inspections | None = None,
    ) -> None:
        self._model, self._store, self._call, self._halves = model, store, call, halves
        self._inspections = inspections or Inspections()
        self._noise = Noise()
        self._generators, self._base = Generators(model), BaseState(model)
        self._own_stream = self._looked_in_training = self._turns_sure = False
        self._one_step = False  # whether adapters run one after another in this step only
        self._branch: Branch | None = None
        self._turns: Turns | None = None
        self._root: NoiseMode | None = None
        self.chain: Chain | None = None
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
        names += [name.rpartition(".")[0] for m in members for name in m.trained_parameters]
        self._modules = {name: submodule(self._model, name) for name in names}
        for name, module in self._modules.items():
            # Kept from the start: while the pack is attached, `module.forward` is the pack's own.
            self._forwards.setdefault(name, module.forward)
        self._layers = self._made(self._halves)
        if self._turns is not None:
            self._turns = self._new_turns()
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

    @property
    def draws(self) -> bool:
        """Whether the model draws noise in training."""
        return self._own_stream or bool(self._keyed)

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
        with left_as_found(self._model):
            keep_unpacked(self._model)
            set_mode(self._model, training)
            if self._branch is None or (training and not self._looked_in_training):
                self._inspect(example, seeds, training)
            with self._replaced(training) as self._attached, torch.enable_grad():  # the caller may be inside no_grad
                try:
                    yield
                    self._base.check(training=training, quick=False)
                finally:
                    if self._one_step:
                        self._turns, self._one_step = None, False

    @contextmanager
    def _replaced(self, training: bool) -> Generator[ExitStack]:
        """The model as a pack: adapted layers, the blocks where rows part, keyed noise."""
        self._training = training
        with ExitStack() as stack:
            self._replace(stack)
            yield stack

    def _replace(self, stack: ExitStack) -> None:
        if self._turns is None:
            branch, keyed = self._branch or DOOR, self._keyed if self._training else ()
            self.chain = chain_of(self._model, self._call, branch, lambda: self._layers, self._noise, keyed)
            stack.callback(setattr, self, "chain", None)  # it refers to this
            stack.enter_context(replaced_forwards(self._modules, self._packed))
            blocks = {name: self._model.get_submodule(name) for name in branch.blocks}
            stack.enter_context(replaced_forwards(blocks, parting(lambda: self._now, branch)))
            if self._halves is not None:
                stack.enter_context(halved(self._model, self._modules, self._halves))
        if self._training:
            noisy = {name: self._model.get_submodule(name) for name in self._keyed if name}
            stack.enter_context(replaced_forwards(noisy, answered(self._noise)))
            if "" in self._keyed:
                # The model itself, what is done to its inputs and outputs, and its hooks.
                self._root = answer_of(self._noise, "")
                stack.callback(setattr, self, "_root", None)

    def _called(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on a batch, with its own noise answered."""
        with self._root or nullcontext():
            return self._call(model, batch)

    def _packed(self, name: str, forward: Forward) -> Forward:
        noise = self._noise if self._training else None
        branch = self._branch or DOOR
        return packed_forward(
            name, lambda: self._now, lambda name: self._layers[name], branch, self._without_rows, noise
        )

    def forward(self, batch: Batch, groups: Groups, draws: Draws, *, knows_arguments: bool = False) -> Tensor:
        """Outputs (K, rows, ...) of all adapters, inside `attached`.

        Args:
            batch: Every tensor (G, rows, ...).
            groups: Which adapter reads which batch.
            draws: What the noise is keyed on.
            knows_arguments: Whether blocks with new arguments are an error.
        """
        outputs = self._any_way(batch, groups, draws, knows_arguments)
        if self.chain is None or not self.chain.ran:
            self._base.check(training=self._training)
        return outputs

    def _any_way(self, batch: Batch, groups: Groups, draws: Draws, knows_arguments: bool) -> Tensor:
        """Outputs of one pass for all adapters, or of one after another; arguments as for `forward`."""
        reason = ""
        if self._turns is None:
            try:
                return self._together(batch, groups, draws, knows_arguments)
            except CannotJoin as error:
                if knows_arguments:
                    raise
                reason = str(error)
        turns = self._turns or self._part(reason)
        try:
            return turns.forward(batch, groups, draws, training=self._training)
        finally:
            if not self._training:
                self._rejoin()

    def _together(self, batch: Batch, groups: Groups, draws: Draws, knows_arguments: bool) -> Tensor:
        """Outputs (K, rows, ...) of one pass over the rows of all adapters; arguments as for `forward`."""
        self._now = Passing(groups, batch_tensors(batch)[0].shape[1])
        try:
            outputs, drawn = self._forward(batch, groups, draws)
        except NewArguments:
            if knows_arguments:
                raise
            self._look_again(batch, groups)
            outputs, drawn = self._forward(batch, groups, draws)
        if drawn:
            raise CannotJoin(f"the model draws random numbers from {drawn}, which it doesn't on the first rows,")
        if self.chain is not None and self.chain.ran:
            return outputs  # which has them in this shape
        if outputs.shape[0] == len(self) * self._now.rows:
            return outputs.view(len(self), self._now.rows, *outputs.shape[1:])
        raise ValueError(f"outputs {tuple(outputs.shape)} for {len(self)} adapters of {self._now.rows} rows")

    def _part(self, reason: str) -> Turns:
        """Run the adapters one after another in this step."""
        self._attached.close()
        self._turns, self._one_step = self._new_turns(), True
        self._replace(self._attached)
        note = f"Steps in which {reason} run one adapter after another."
        if note not in self.notes:
            self.notes.append(note)
        return self._turns

    def _rejoin(self) -> None:
        """End a step in which the adapters ran one after another."""
        if self._one_step:
            self._attached.close()
            self._turns, self._one_step = None, False
            self._replace(self._attached)

    def _forward(self, batch: Batch, groups: Groups, draws: Draws) -> tuple[Tensor, str]:
        branch = self._branch or DOOR
        self._noise.before = branch.before
        self._noise.begin(groups, draws)
        flat = lazily(batch, lambda t: (t if branch.name else groups.fan_out(t)).flatten(0, 1))
        if self.chain is not None and (x := self.chain.input_of(flat)) is not None:
            return self.chain.forward(x, groups, flat), ""
        return watched(self._generators, lambda: self._called(self._model, flat), training=self._training)

    def _look_again(self, batch: Batch, groups: Groups) -> None:
        """Find the branch point again for a batch whose blocks get new arguments; else branch at the model's input."""
        self._attached.close()
        rows = mapped(batch, lambda t: t.flatten(0, 1))
        n = len(batch_tensors(rows)[0])
        first, larger = (
            trace(self._model, lambda m=m: self._call(self._model, rows_from(rows, m)), m) for m in (n, n + 1)
        )
        self._branch = (self._branch or DOOR).joined(find_branch(self._model, self._modules, first, larger))
        own = [mapped(batch, lambda t, g=g: t[g]) for g in range(groups.n_batches)]
        if self._branch.name and self._mismatch(own, groups, training=False):
            self._branch = DOOR
        set_mode(self._model, self._training)
        self._now = Passing(groups, batch_tensors(batch)[0].shape[1])
        self._replace(self._attached)

    def backward(self, losses: Tensor, start: Tensor) -> None:
        """Add the gradients of each adapter's loss (K, ...) to the store, from `start`, those with respect to it."""
        # Each adapter's loss depends on its own rows only, so the gradient of the sum is each one's own gradient.
        self._noise.backward()
        self._store.step_runs[0] = True
        try:
            # Not autograd.grad: reentrant checkpointing can't be differentiated by given inputs.
            if not losses.requires_grad:
                pass
            elif self.chain is not None and self.chain.ran:
                ENGINE.run_backward((losses,), (start,), False, False, (), True, True)
                self.chain.backward()
            elif self._turns is None or self._turns_sure:
                torch.autograd.backward(losses, start)
            else:
                backward_once(self._model, losses, start)
                self._turns_sure = True
        finally:
            self._store.step_runs[0] = False
        if self._turns is not None:
            self._turns.alone.collect()
            return self._rejoin()
        for leaf, gradient in [pair for layer in self._layers.values() for pair in layer.leaves]:
            if leaf.grad is not None:
                gradient.copy(leaf.grad)
                leaf.grad = None

    def _inspect(self, example: Batch, seeds: Sequence[int], training: bool) -> None:
        """Find where the model draws noise and where the rows branch, and compare the pack with each adapter alone."""
        n = len(batch_tensors(example)[0])
        rows = max(n, min(MOST_ROWS, n * len(self)))
        found = self._inspections.inspect(self._model, self._call, example, self._base, rows=rows, training=training)
        self._looked_in_training = training
        self._turns = None
        self._keyed = list(found.dims) if training else []
        self._own_stream = training and bool(found.unkeyed)
        self._without_rows = find_without_rows(found.first, found.larger)
        # Where the input has no rows, each adapter's copy of it is one.
        rowless = {f"{name}.lora": (0,) for name in self._without_rows if name in self._modules}
        self._noise.dims = {**found.dims, **found.dims_of_inputs(self._modules), **rowless}
        self._branch = self._choose(example, seeds, found)
        set_mode(self._model, training)

    def _choose(self, example: Batch, seeds: Sequence[int], found: ModelInspection) -> Branch:
        """The latest branch point at which the pack equals its adapters alone; at none, they run one by one."""
        order = found.first.order
        odd = next((n for n in self._modules if n in order and self._noise.dims.get(f"{n}.lora", ()) != (0,)), None)
        problem = "a module with its own weights is never called, or has modules inside"
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
            batches = [rows_from(example, 2, start=g) for g in range(len(seeds))]
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
        self.notes += acting_dropout(self._members())
        if len(self) > 1:
            what = "adapters" if all(m.member.lora is not None for m in self._members()) else "runs"
            self.notes.append(f"The {what} run one after another, since {problem}.")
        self._turns = self._new_turns()
        return DOOR

    def _new_turns(self) -> Turns:
        alone = OneByOne(self._model, self._store, self._called)
        return Turns(alone, self._noise, self._generators, streams=self._own_stream)

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
        turns = Turns(OneByOne(self._model, store, self._called), self._noise, self._generators)
        joined, draws = stacked(batches), Draws([*seeds, *[0] * groups.n_batches][: groups.n_batches], 0)

        @contextmanager
        def as_turns() -> Generator[None]:
            self._turns = turns
            with self._replaced(training):
                yield

        def one(k: int, then: Callable[[Tensor], object]) -> Tensor:
            def and_then(outputs: Tensor) -> None:
                self._noise.backward()
                then(outputs)

            return turns.one(k, joined, groups, draws, training=training, then=and_then)

        set_mode(self._model, training)
        try:
            return difference(
                store,
                [member.member.name for member in self._members()],
                as_pack=self._replaced(training),
                together=lambda: self.forward(joined, groups, draws, knows_arguments=True),
                backward=lambda losses: self.backward(losses, torch.ones_like(losses)),
                as_turns=as_turns(),
                one=one,
                collect=turns.alone.collect,
                # Gradients of half precision may overflow, and tell little.
                gradients=training and torch.finfo(dtype).bits >= 32,
                dtype=dtype,
            )
        finally:
            self._turns = None
            self._halves, self._layers = halves, layers
            store.theta.copy_(before)
            store.refresh()
