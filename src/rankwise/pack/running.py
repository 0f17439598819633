"""A model run as a pack: what is put in place of its modules' forwards, and the forward pass of all adapters.

What lies before the branch point runs once for each batch, what lies after it once for each adapter.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankwise.errors import PackError
from rankwise.lora.layer_types.quantised import keep_unpacked
from rankwise.lora.modules import submodule
from rankwise.pack.alone import Alone
from rankwise.pack.batches import Batch, lazily, rows_of, stacked, tensors_of
from rankwise.pack.forwards import Forward, replaced_forwards
from rankwise.pack.groups import Groups
from rankwise.pack.half import Halves, halved
from rankwise.pack.layers import PackedLayer, called_without_rows, packed_layer
from rankwise.pack.noise import Draws, Noise, answered
from rankwise.pack.probe import coarsest, refuse_mixed_rows, same
from rankwise.pack.resolved import Resolved
from rankwise.pack.store import Store
from rankwise.pack.trace import DOOR, Branch, Trace, find_branch, find_without_rows, has_no_rows, trace

Call = Callable[[nn.Module, Batch], Tensor]
"""How a model is run on a batch."""


def set_mode(model: nn.Module, training: bool) -> None:
    """The mode in which a pack runs its base: train or eval, but BatchNorm in eval mode always."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.eval()


class Running:
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
        self._noisy: list[str] = []
        self._looked_in_training = False
        self._branch: Branch | None = None
        self._alone: Alone | None = None
        self._alone_sure = False
        self._forwards: dict[str, Forward] = {}
        self._without_rows: Mapping[str, torch.Size] = {}
        self.notes: list[str] = []
        """What a user should know of how the pack runs."""
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
            self._alone = Alone(self._model, self._store, self._call)
        if self._branch is not None and self._branch.inside and self._branch.name not in self._modules:
            self._branch = None  # the rows parted in a layer that nothing adapts any more

    def _made(self, halves: Halves | None) -> dict[str, PackedLayer]:
        """The layers as they run in the pack, in bfloat16 or in the type of their weights."""
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
                self._look(example, seeds, training)
            with self._replaced(training):
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, requires_grad in required.items():
                parameter.requires_grad_(requires_grad)

    @contextmanager
    def _replaced(self, training: bool) -> Generator[None]:
        """The model as a pack: adapted layers, the blocks where rows part, keyed noise."""
        branch = self._branch or DOOR
        self._training = training
        with ExitStack() as stack:
            if self._alone is None:
                stack.enter_context(replaced_forwards(self._modules, self._packed))
                blocks = {name: self._model.get_submodule(name) for name in branch.blocks}
                stack.enter_context(replaced_forwards(blocks, self._parting))
                if self._halves is not None:
                    stack.enter_context(halved(self._model, self._modules, self._halves))
            noisy = {name: self._model.get_submodule(name) for name in self._noisy} if training else {}
            stack.enter_context(replaced_forwards(noisy, answered(self._noise)))
            yield

    def _packed(self, name: str, forward: Forward) -> Forward:
        branch = self._branch or DOOR
        shared = branch.inside and branch.name == name
        noise = self._noise if self._training else None

        def call(x: Tensor, *rest: Any, **named: Any) -> Tensor:
            # Looked up at every call: adapters that leave the pack leave its layers.
            layer = self._layers[name]
            if has_no_rows(x, self._without_rows.get(name), len(self) * self._rows):
                return called_without_rows(layer, x, self._groups, self._rows, noise, *rest, **named)
            return layer(x, self._groups, shared, noise, *rest, **named)

        return call

    def _parting(self, name: str, forward: Forward) -> Forward:
        places = (self._branch or DOOR).blocks[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            n = self._groups.n_batches
            if n != len(self):
                flat, spec = tree_flatten((args, kwargs))
                for i, length in places.items():
                    # transformers makes no mask for a batch without gaps.
                    if flat[i] is not None and flat[i].shape[0] == length * n * self._rows:
                        flat[i] = self._groups.fan_out(flat[i].unflatten(0, (n, -1))).flatten(0, 1)
                args, kwargs = tree_unflatten(flat, spec)
            return forward(*args, **kwargs)

        return call

    def forward(self, batch: Batch, groups: Groups, draws: Draws) -> Tensor:
        """Outputs (K, rows, ...) of all adapters, inside `attached`.

        Args:
            batch: Every tensor (G, rows, ...).
            groups: Which adapter reads which batch.
            draws: What the noise is keyed on.
        """
        if self._alone is not None:
            return torch.stack([self._forward_alone(k, batch, groups, draws) for k in range(len(self))])
        branch = self._branch or DOOR
        self._groups, self._rows = groups, tensors_of(batch)[0].shape[1]
        self._noise.before = branch.before
        self._noise.begin(groups, draws)
        flat = lazily(batch, lambda t: (t if branch.name else groups.fan_out(t)).flatten(0, 1))
        outputs = self._call(self._model, flat)
        if outputs.shape[0] != len(self) * self._rows:
            raise ValueError(f"outputs of shape {tuple(outputs.shape)} for {len(self)} adapters of {self._rows} rows")
        return outputs.unflatten(0, (len(self), -1))

    def _forward_alone(self, k: int, batch: Batch, groups: Groups, draws: Draws) -> Tensor:
        g = groups.batch_of[k]
        self._noise.before = ()
        own = replace(draws, seeds=draws.seeds[g : g + 1])
        self._noise.begin(Groups([0], 1, self._store.theta.device), own)
        alone = self._alone or Alone(self._model, self._store, self._call)
        return alone(k, lazily(batch, lambda t: t[g]), self._noise if self._training else None)

    def backward(self, losses: Tensor) -> None:
        """Add the gradients of each adapter's loss to the store."""
        # Each adapter's loss depends on its own rows only, so the gradient of the sum is each one's own gradient.
        sources: Sequence[PackedLayer | Alone] = [self._alone] if self._alone else list(self._layers.values())
        self._noise.backward()
        # Not autograd.grad: reentrant checkpointing can't be differentiated by given inputs.
        if self._alone is None or self._alone_sure:
            torch.autograd.backward(losses.sum())
        else:
            self._first_backward_alone(losses.sum())
        for leaf, gradient in [pair for source in sources for pair in source.leaves]:
            if leaf.grad is not None:
                gradient.copy(leaf.grad)
                leaf.grad = None

    def _first_backward_alone(self, loss: Tensor) -> None:
        """The first backward pass of adapters that run one after another: nothing may run forward again in it, as each
        one's weights stand in the model for its own forward pass only.

        Raises:
            PackError: Something does.
        """
        again: list[str] = []

        def noting(name: str, forward: Forward) -> Forward:
            return lambda *args, **kwargs: again.append(name) or forward(*args, **kwargs)

        try:
            with replaced_forwards(dict(self._model.named_modules()), noting):
                torch.autograd.backward(loss)
        except RuntimeError:
            if not again:
                raise
        if again:
            raise PackError(
                f'"{again[0]}" runs again in the backward pass (gradient checkpointing), and the adapters run one '
                "after another here, each with weights of its own in place of the model's. Switch checkpointing off."
            )
        self._alone_sure = True

    def _look(self, example: Batch, seeds: Sequence[int], training: bool) -> None:
        """Find where the model draws noise and where the rows part, and hold the pack against its adapters alone."""
        first = self._trace(example, 2)
        self._noisy = first.noisy if training else []
        self._looked_in_training = training
        self._alone = None
        larger = self._trace(example, 3)
        self._without_rows = find_without_rows(first, larger)
        set_mode(self._model, False)
        with torch.no_grad():
            refuse_mixed_rows(self._model, lambda rows: self._call(self._model, rows_of(example, rows)))
        self._branch = self._choose(example, seeds, first, larger)
        set_mode(self._model, training)

    def _trace(self, example: Batch, rows: int) -> Trace:
        return trace(self._model, lambda: self._call(self._model, rows_of(example, rows)))

    def _choose(self, example: Batch, seeds: Sequence[int], first: Trace, larger: Trace) -> Branch:
        """The latest branch point at which the pack equals its adapters alone; at none, they run one by one."""
        problem = "a module with weights of its own is never called, or has modules inside"
        if self._uncallable is not None:
            problem = f'the weight of "{self._uncallable}" is read without calling the layer, or shared by several'
        elif all(name in first.order and not list(module.children()) for name, module in self._modules.items()):
            found = find_branch(self._model, self._modules, first, larger)
            for branch in [found, DOOR] if found.name else [DOOR]:
                self._branch = branch
                problem = self._differs(example, seeds)
                if not problem:
                    return branch
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
        self._alone = Alone(self._model, self._store, self._call)
        return DOOR

    @torch.no_grad()
    def _differs(self, example: Batch, seeds: Sequence[int]) -> str:
        """Why a pack with random numbers in all its tensors isn't its adapters alone; empty where it is."""
        store, alone = self._store, Alone(self._model, self._store, self._call)
        before = store.theta.clone()
        halves, layers = self._halves, self._layers
        if halves is not None:
            # Rounding to bfloat16 would hide differences.
            self._halves, self._layers = None, self._made(None)
        members = self._members()
        store.randomise()
        # Each seed has rows of its own: the example's, turned round.
        batches = [rows_of(example, 2, start=g) for g in range(len(seeds))]
        by_seed = [seeds.index(m.member.seed) for m in members]
        # A step gives each seed its own batch, an evaluation gives all adapters one. Where there are as many seeds as
        # adapters, only the second repeats rows.
        layouts = [by_seed] if len(seeds) == 1 else [by_seed, [0] * len(members)]
        try:
            for batch_of in layouts:
                read = batches[: max(batch_of) + 1]
                groups = Groups(batch_of, len(read), store.theta.device)
                with self._replaced(training=False):
                    try:
                        ours = self.forward(stacked(read), groups, Draws(seeds[: len(read)], 0))
                    except torch.OutOfMemoryError:
                        raise  # no fault of the model's
                    except (RuntimeError, ValueError, IndexError, TypeError):
                        return "the model can't compute the rows of all of them in one forward pass"
                for k, g in enumerate(batch_of):
                    if not same(ours[k], alone(k, batches[g]), coarsest(self._model)):
                        return f'the outputs of "{members[k].member.name}" in the pack differ from its own'
            return ""
        finally:
            self._halves, self._layers = halves, layers
            store.theta.copy_(before)
            store.refresh()
