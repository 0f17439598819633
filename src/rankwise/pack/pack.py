"""K adapters trained in one pass over one frozen base.

A pack computes what `torch.vmap` over the stacked A and B of `functional_call(base, ...)` computes
(`tests/reference.py` holds that line), but the frozen products run once over all rows, and what lies before
the first adapted layer runs once for each batch.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.pack.adamw import PackedAdamW, clip_gradients
from rankwise.pack.forwards import Forward, replaced_forwards
from rankwise.pack.groups import Groups
from rankwise.pack.layer import PackedLayer
from rankwise.pack.losses import Batch, PerAdapter, PerBatch, lazily
from rankwise.pack.member import Member
from rankwise.pack.noise import Noise, answered, find_noisy_modules
from rankwise.pack.resolved import Resolved, State, resolve
from rankwise.pack.store import Store


def call_model(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model on a batch: a tensor as it is, a tuple's or list's first element, a mapping as keywords."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "labels"})
    return model(batch[0])


class Pack:
    """K adapters over one base, as stacks.

    Args:
        model: The base. Its weights, buffers and modes are as before whenever the pack is not attached.
        members: The adapters; names unique.
        loss: loss(outputs, batch) of ONE adapter: a scalar, or one value a row.
        states: Tensors to start from, by member name; others start from their initialisation.
        call: How the model is run on a batch.

    Raises:
        PackError: Two members have one name, or a layer can't be packed.
        TargetError: A pattern matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[Member],
        loss: PerBatch,
        *,
        states: Mapping[str, State] | None = None,
        call: Callable[[nn.Module, Batch], Tensor] = call_model,
    ) -> None:
        names = [member.name for member in members]
        if not members or len(set(names)) != len(names):
            raise PackError(f"A pack needs members with names of their own; got {names}.")
        self._model, self._call = model, call
        self._loss = PerAdapter(loss, "loss")
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        self.device, self.dtype = parameter.device, parameter.dtype
        seeds = list(dict.fromkeys(member.seed for member in members))
        by_key: dict[object, list[Resolved]] = {}
        for member in members:
            resolved = resolve(model, member)
            by_key.setdefault(resolved.bucket_key(), []).append(resolved)
        # Sorted by seed, so that adapters which read one batch lie side by side.
        groups = [sorted(group, key=lambda m: seeds.index(m.member.seed)) for group in by_key.values()]
        self.store = Store(groups, model, states or {}, self.device, self.dtype)
        self._optimiser = PackedAdamW(self.store)
        self._noise = Noise()
        self._prepare()
        self.steps = 0
        self._noisy: list[str] | None = None
        self._branch: str | None = None

    def _prepare(self) -> None:
        """Everything that follows from which adapters are in the pack."""
        names = dict.fromkeys(t.name for m in self.members for t in m.targets)
        whole = dict.fromkeys(name.rpartition(".")[0] for m in self.members for name in m.whole)
        modules = {name: self._model.get_submodule(name) for name in {**names, **whole}}
        self._layers = {name: PackedLayer(name, module, self.store) for name, module in modules.items()}
        self.seeds = list(dict.fromkeys(m.member.seed for m in self.members))
        batch_of = [self.seeds.index(m.member.seed) for m in self.members]
        self._by_seed = Groups(batch_of, len(self.seeds), self.device)
        self._together = Groups([0] * len(batch_of), 1, self.device)
        # The modules that are answered from it hold this very object.
        self._noise.seeds = self.seeds

    @property
    def members(self) -> list[Resolved]:
        """The adapters in the order in which every vector of the pack holds them."""
        return [member for bucket in self.store.buckets for member in bucket.members]

    def __len__(self) -> int:
        return len(self.store)

    @contextmanager
    def attached(self, example: Batch, *, training: bool) -> Generator[None]:
        """Run the model as a pack inside this block; afterwards it is the plain base again.

        Args:
            example: A few rows, to find by a traced pass where dropout is called and where the adapters part.
            training: Train mode (the base's own dropout on; BatchNorm stays in eval mode) or eval mode.
        """
        modes = {module: module.training for module in self._model.modules()}
        required = {p: p.requires_grad for p in self._model.parameters()}
        try:
            self._model.requires_grad_(False)
            self._model.train(training)
            for module in modes:
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                    module.eval()
            self._training = training
            if self._noisy is None or self._branch is None:
                self._trace(example)
            with ExitStack() as stack:
                layers = {name: self._model.get_submodule(name) for name in self._layers}
                stack.enter_context(replaced_forwards(layers, self._packed))
                noisy = {name: self._model.get_submodule(name) for name in self._noisy or ()} if training else {}
                stack.enter_context(replaced_forwards(noisy, answered(self._noise)))
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for parameter, requires_grad in required.items():
                parameter.requires_grad_(requires_grad)

    def _trace(self, example: Batch) -> None:
        """Find the noisy modules, and the first adapted layer: the branch point if the rows reach it unshared.

        Where every ancestor of that layer is a Sequential, nothing but its input leads to what comes after, so
        the rows can part inside it. Elsewhere they part at the model's door.
        """
        order: list[str] = []

        def noting(name: str, forward: Forward) -> Forward:
            def call(*args: Any, **kwargs: Any) -> Any:
                order.append(name)
                return forward(*args, **kwargs)

            return call

        layers = {name: self._model.get_submodule(name) for name in self._layers}
        with replaced_forwards(layers, noting):
            self._noisy = find_noisy_modules(self._model, lambda: self._call(self._model, example))
        first = order[0] if order else ""
        path = first.split(".")[:-1]
        ancestors = [self._model.get_submodule(".".join(path[:i])) for i in range(len(path) + 1)]
        self._branch = first if first and all(type(a) is nn.Sequential for a in ancestors) else ""

    def _packed(self, name: str, forward: Forward) -> Forward:
        def call(x: Tensor) -> Tensor:
            shared = self._noise.before_branch
            self._noise.before_branch = False
            return self._layers[name](x, self._groups, shared, self._noise if self._training else None)

        return call

    def _forward(self, batch: Batch, groups: Groups) -> Tensor:
        """Outputs (K, rows, ...) of all adapters; every tensor of the batch is (G, rows, ...)."""
        self._groups = groups
        self._noise.begin(groups, self.steps)
        at_door = not self._branch
        self._noise.before_branch = not at_door
        flat = lazily(batch, lambda t: (groups.fan_out(t) if at_door else t).flatten(0, 1))
        outputs = self._call(self._model, flat)
        return outputs.view(len(self), -1, *outputs.shape[1:])

    def step(self, batch: Batch, lr: Tensor, weight_decay: Tensor | None, max_norm: Tensor | None) -> Tensor:
        """One training step of every adapter, inside `attached(training=True)`.

        Args:
            batch: A batch for each of `seeds`: every tensor (G, rows, ...).
            lr: Learning rate of each adapter.
            weight_decay: Each adapter's, or None when all are zero.
            max_norm: Each adapter's limit on the norm of its gradient, or None when none has one.

        Returns:
            Each adapter's loss, before the step.
        """
        self.store.begin()
        losses = self._loss.mean(self._forward(batch, self._by_seed), batch, self._by_seed)
        self._backward(losses)
        self.store.finish()
        if max_norm is not None:
            clip_gradients(self.store, max_norm)
        self._optimiser.step(lr, weight_decay)
        self.store.refresh()
        self.steps += 1
        return losses.detach()

    def _backward(self, losses: Tensor) -> None:
        # Each adapter's loss depends on its own rows only, so the gradient of the sum is each one's own gradient.
        leaves = [pair for layer in self._layers.values() for pair in layer.leaves]
        inputs = [self.store.anchor, *(leaf for leaf, _ in leaves)]
        _, *grads = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
        for (_, gradient), value in zip(leaves, grads, strict=True):
            if value is not None:  # pyright: ignore[reportUnnecessaryComparison]
                gradient.copy(value)

    @torch.no_grad()
    def evaluate(self, batch: Batch, functions: Sequence[PerAdapter]) -> list[Tensor]:
        """Values of each function for every adapter on one batch that all read, inside `attached(training=False)`.

        Args:
            batch: Every tensor (rows, ...).
            functions: Losses or metrics.

        Returns:
            For each function (K, rows), or (K,) where it returns a scalar.
        """
        shared = lazily(batch, lambda t: t.unsqueeze(0))
        outputs = self._forward(shared, self._together)
        return [function.values(outputs, shared, self._together) for function in functions]

    def rows(self) -> Tensor:
        """A copy of all parameters, for `copy_rows`, `states` and `keep`."""
        return self.store.theta.clone()

    def copy_rows(self, target: Tensor, mask: Tensor) -> None:
        """Overwrite in `target` (from `rows`) the adapters where mask is true with their present parameters."""
        self.store.copy_where(self.store.theta, target, mask)

    def states(self, rows: Tensor | None = None) -> dict[str, State]:
        """Every adapter's tensors by name, from `rows` or as they are now."""
        return self.store.read(self.store.theta if rows is None else rows)

    def gradient_norms(self) -> Tensor:
        """The norm of each adapter's gradient in the last step, over all its tensors: (K,)."""
        return self.store.norms(self.store.grads)

    def rows_of(self, states: Mapping[str, State]) -> Tensor:
        """The vector that holds these tensors, laid out as `rows`: the inverse of `states`."""
        rows = torch.zeros_like(self.store.theta)
        self.store.write(rows, states)
        return rows

    def optimiser_state(self) -> dict[str, State]:
        """Every adapter's moments by its name, on the CPU."""
        return self._optimiser.state()

    def load(self, states: Mapping[str, State], optimiser: Mapping[str, State], steps: int) -> None:
        """Go on from elsewhere: parameters as `states`, moments as `optimiser_state` gave them, after so many steps."""
        self.store.write(self.store.theta, states)
        self.store.refresh()
        self._optimiser.load_state(optimiser, steps)
        self.steps = steps

    def keep(self, mask: Tensor, rows: Tensor | None = None) -> Tensor | None:
        """Cut out the adapters where mask is false; the others go on as if nothing had happened.

        Args:
            mask: (K,), true for those that stay; at least one must.
            rows: A copy from `rows` to be cut alike.

        Returns:
            The cut copy.
        """
        masks = list(mask.split([len(bucket) for bucket in self.store.buckets]))
        kept = [self._optimiser.first, self._optimiser.second] + ([] if rows is None else [rows])
        first, second, *cut = self.store.keep(masks, kept)
        self._optimiser.moved(first, second)
        self._prepare()
        return cut[0] if cut else None
