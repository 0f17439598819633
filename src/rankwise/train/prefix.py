"""Run the layers before the first adapted one once for each row instead of in every step.

Where only the top blocks of a model are adapted, the blocks below give a row the same numbers in every epoch. Their
outputs are stored with the data, in memory or in files; in training a stub replaces each of these modules and
hands out what was kept. Modules whose outputs nothing reads any more (all blocks below but the last) are skipped; which
these are is found by putting NaN in their place.

The outputs are those of other batches than the training's, so they agree with an uncached run to rounding.
"""

import os
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankwise.errors import ConfigError, OutputError
from rankwise.lora.base.modes import modes_restored
from rankwise.lora.layer_types.quantised import keep_unpacked
from rankwise.pack.batches import Batch, batch_tensors, lazily, rows_from, selected
from rankwise.pack.memory import ran_out
from rankwise.pack.model.probe import same
from rankwise.pack.model.trace import find_branch, trace
from rankwise.pack.modes import set_mode
from rankwise.pack.noise.forwards import Forward, replaced_forwards
from rankwise.train.data.tensors import Data, count_rows
from rankwise.train.machine.memory import free_bytes

Call = Callable[[nn.Module, Batch], Tensor]

ROWS_AT_ONCE = 64
"""Rows that pass at once while the outputs are computed."""

OWN, KEPT = "row/", "prefix/"
"""Prefixes of the keys of a batch's own tensors, and of cached outputs."""


class _Reached(Exception):  # noqa: N818  (no error: it ends a forward pass)
    """Raised where the rest of the model begins: it is not needed to compute what comes before."""


@dataclass(frozen=True)
class Output:
    """The output of a module.

    Args:
        leaves: Its tensors and other values, in order, for two rows.
        spec: How they are nested.
        lengths: For each tensor with rows, its leading length for one row, by place.
    """

    leaves: list[Any]
    spec: Any
    lengths: Mapping[int, int]

    def with_rows(self, rows: Mapping[int, Tensor]) -> Any:
        """The output with these tensors in place of those with rows, and copies of the others: a model may write to
        what it is given."""
        others = [
            leaf.clone() if isinstance(leaf, Tensor) and i not in rows else leaf for i, leaf in enumerate(self.leaves)
        ]
        return tree_unflatten([rows.get(i, leaf) for i, leaf in enumerate(others)], self.spec)

    def unread(self, n: int) -> Any:
        """The output for n rows of something that nothing may read: NaN. Where it is written to, it stays NaN."""
        shapes = {i: (n * length, *self.leaves[i].shape[1:]) for i, length in self.lengths.items()}
        return self.with_rows({i: self.leaves[i].new_full(s, _nothing(self.leaves[i])) for i, s in shapes.items()})


def _nothing(t: Tensor) -> float:
    return float("nan") if t.is_floating_point() else 0


@dataclass(frozen=True)
class Prefix:
    """The part of a model that runs once for each row.

    Args:
        model: The base.
        call: How it is run on a batch.
        branch: The module at which the rest begins.
        stored: Modules whose outputs the rest reads.
        skipped: Those whose outputs it doesn't.
        example: Two rows, for the form of a batch.
    """

    model: nn.Module
    call: Call
    branch: str
    stored: Mapping[str, Output]
    skipped: Mapping[str, Output]
    example: Batch

    @property
    def bytes_a_row(self) -> int:
        """The cached bytes of a row."""
        tensors = [output.leaves[i] for output in self.stored.values() for i in output.lengths]
        return sum(t.numel() * t.element_size() // 2 for t in tensors)

    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the model on a batch, from what was kept where it has that."""
        if not has_stored(batch):
            return self.call(model, batch)
        n = batch[f"{KEPT}0"].shape[0]

        def answer(name: str, forward: Forward) -> Forward:
            if name in self.skipped:
                return lambda *args, **kwargs: self.skipped[name].unread(n)
            keys = self._keys(name)
            # Copies: a model may write to them, and a batch may be a view of what was kept.
            return lambda *args, **kwargs: self.stored[name].with_rows(
                {i: batch[key].flatten(0, 1).clone() for i, key in keys.items()}
            )

        modules = {name: model.get_submodule(name) for name in (*self.stored, *self.skipped)}
        with replaced_forwards(modules, answer):
            return self.call(model, self.without_stored(batch))

    def without_stored(self, batch: Batch) -> Batch:
        """A batch in the user's form, without what was kept."""
        if not has_stored(batch):
            return batch

        def of(key: Any) -> Tensor:
            return batch[key]

        if isinstance(self.example, Tensor):
            return of(OWN)
        if isinstance(self.example, Mapping):
            return lazily({key: f"{OWN}{key}" for key in self.example}, of)
        return lazily([f"{OWN}{i}" for i in range(len(self.example))], of)

    def reading(self, function: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch], Any]:
        """A loss or metric that is given the user's form of a batch."""
        return lambda outputs, batch: function(outputs, self.without_stored(batch))

    def beside(self, data: Data, folder: Path | None, name: str) -> Data:
        """The data with what the prefix gives for each row.

        Args:
            data: Tensors with the rows first.
            folder: Where the outputs are kept; None for memory.
            name: What their files are called.
        """
        n = count_rows(data, name)
        found: dict[str, Tensor] = {}
        for rows in torch.arange(n).split(ROWS_AT_ONCE):
            batch = selected(data, rows)
            outputs = _outputs(self.model, self.call, self.stored, batch, self.branch)
            for module, output in self.stored.items():
                for i, key in self._keys(module).items():
                    t = outputs[module][0][i].unflatten(0, (len(rows), output.lengths[i]))
                    if key not in found:
                        path = None if folder is None else folder / f"{name}-{key.removeprefix(KEPT)}.bin"
                        found[key] = _room((n, *t.shape[1:]), t, path)
                    found[key][rows[0] : rows[-1] + 1] = t
        with_user: dict[str, Tensor] = {}
        if isinstance(data, Tensor):
            with_user[OWN] = data
        else:
            with_user |= {f"{OWN}{k}": t for k, t in (data.items() if isinstance(data, Mapping) else enumerate(data))}
        return with_user | found

    def _keys(self, name: str) -> dict[int, str]:
        """Keys of a module's cached output in a batch, by the place in the output."""
        places = [(module, i) for module, output in self.stored.items() for i in output.lengths]
        return {i: f"{KEPT}{k}" for k, (module, i) in enumerate(places) if module == name}


def own_tensors(data: Data) -> list[Tensor]:
    """The tensors of a data set without the cached outputs, which follow from it and the base."""
    if isinstance(data, Mapping):
        return [t for key, t in data.items() if not str(key).startswith(KEPT)]
    return batch_tensors(data)


def has_stored(batch: Batch) -> bool:
    """Whether a batch has cached outputs."""
    return isinstance(batch, Mapping) and f"{KEPT}0" in batch


def find_prefix(model: nn.Module, adapted: Collection[str], example: Data, call: Call) -> Prefix:
    """Find what may run once for each row.

    Args:
        model: The base.
        adapted: The modules that any run changes.
        example: Two rows or more.
        call: How the model is run on a batch.

    Raises:
        ConfigError: Nothing runs before them for sure, or what runs there draws noise.
    """
    two, three, others = rows_from(example, 2), rows_from(example, 3), rows_from(example, 2, start=1)
    with _mode(model, training=True):
        noisy = trace(model, lambda: call(model, two), 2).noisy
    with _mode(model, training=False):
        first, larger = (trace(model, lambda batch=batch: call(model, batch), n) for n, batch in ((2, two), (3, three)))
        if bare := next((name for name in adapted if name not in first.order), None):
            raise ConfigError(
                f'"{bare}" is adapted or trained in full and never called, so nothing says what runs before it. '
                "Leave it out, or switch the cache off."
            )
        branch = find_branch(model, adapted, first, larger)
        outer = [name for name in first.order if name in branch.before and not _inside(name, branch.before)]
        modules = [name for name in outer if first.calls[name] == 1 and _has_weights(model.get_submodule(name))]
        # The form of outputs is taken from other rows than those of the check below: what hangs on the rows and can't
        # be kept (a mask of one row, an object) is then found out there.
        recorded = _recorded(model, call, modules, others, three, branch.name) if modules else {}
        stored = {name: output for name, output in recorded.items() if output.lengths}
        if not stored:
            raise ConfigError(
                "Nothing can be cached: no module with weights runs before the first adapted layer for sure. Adapt the "
                'upper blocks only (target_modules, such as "re:.*layer\\\\.[45]\\\\..*"), or switch the cache off.'
            )
        loud = next((name for name in noisy if name in branch.before), None)
        if loud := loud or _other_in_training(model, call, stored, two, branch.name):
            raise ConfigError(
                f'"{loud}" draws noise before the first adapted layer, or gives something else in train mode than in '
                "eval mode, as after noise, so its outputs can't be cached. Set the base's dropout to 0 there, or "
                "switch the cache off."
            )
        found = Prefix(model, call, branch.name, stored, {}, two)
        expected = call(model, two)

        def is_equal(tried: Prefix) -> bool:
            data = tried.beside(two, None, "example")
            call(model, others)  # What a module remembers of its last pass isn't of these rows.
            try:
                return torch.equal(tried.run(model, data), expected)
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
                if ran_out(error):
                    raise  # no fault of the model's
                return False

        for name in stored:
            fewer = {k: v for k, v in found.stored.items() if k != name}
            tried = Prefix(model, call, branch.name, fewer, {**found.skipped, name: stored[name]}, two)
            # `beside` needs at least one output.
            if fewer and is_equal(tried):
                found = tried
        if not is_equal(found):
            raise ConfigError(
                "Nothing can be cached: the model gives something else when the modules before the first adapted layer "
                "are not run. Switch the cache off."
            )
    return found


def check_room(needed: int, device: torch.device, folder: Path | None) -> None:
    """Refuse what doesn't fit.

    Raises:
        ConfigError: The cache is larger than the memory that is free, or is on disk for a model on another device.
    """
    if folder is not None:
        if device.type != "cpu":
            raise ConfigError(f"The model is on {device}; a cache in a folder is for the CPU. Keep it in memory.")
        return
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"The cache needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; give a folder for it."
        )


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Generator[None]:
    with modes_restored(model.modules()), torch.no_grad():
        keep_unpacked(model)
        set_mode(model, training)
        yield


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _inside(name: str, others: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in others for i in range(1, len(parts)))


def _other_in_training(model: nn.Module, call: Call, stored: Mapping[str, Output], batch: Batch, until: str) -> str:
    """The first module whose output isn't the same in train mode: noise that others draw reaches it too."""
    evaluated = _outputs(model, call, stored, batch, until)
    with torch.random.fork_rng(devices=[]):
        trained = _outputs(model, call, stored, batch, until, training=True)
    alike = {name: [same(trained[name][0][i], evaluated[name][0][i]) for i in stored[name].lengths] for name in stored}
    return next((name for name in stored if not all(alike[name])), "")


def _outputs(
    model: nn.Module, call: Call, modules: Collection[str], batch: Batch, until: str, *, training: bool = False
) -> dict[str, tuple[list[Any], Any]]:
    """The flattened outputs of these modules for a batch; the model runs only up to `until`."""
    found: dict[str, tuple[list[Any], Any]] = {}

    def noting(name: str, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            leaves, spec = tree_flatten(output)
            # Copies: what comes next may write to them.
            found[name] = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
            return output

        return run

    def ending(name: str, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            raise _Reached

        return run

    noted = {name: model.get_submodule(name) for name in modules}
    with (
        _mode(model, training=training),
        replaced_forwards(noted, noting),
        replaced_forwards({until: model.get_submodule(until)}, ending),
        suppress(_Reached),
    ):
        call(model, batch)
    return found


def _recorded(
    model: nn.Module, call: Call, modules: Collection[str], two: Batch, three: Batch, until: str
) -> dict[str, Output]:
    """The outputs of these modules, and which of their tensors have the batch's rows."""
    small, large = (_outputs(model, call, modules, batch, until) for batch in (two, three))
    found: dict[str, Output] = {}
    for name in modules:
        (leaves, spec), (others, _) = small[name], large[name]
        lengths: dict[int, int] = {}
        for i, (t, other) in enumerate(zip(leaves, others, strict=True)):
            if not isinstance(t, Tensor) or t.shape == other.shape:
                continue
            if t.shape[0] % 2 or t.shape[0] // 2 * 3 != other.shape[0] or t.shape[1:] != other.shape[1:]:
                raise ConfigError(f'"{name}" gives a tensor of shape {tuple(t.shape)}, which has no rows to cache.')
            lengths[i] = t.shape[0] // 2
        found[name] = Output(leaves, spec, lengths)
    return found


def _room(shape: tuple[int, ...], like: Tensor, path: Path | None) -> Tensor:
    """Memory, or a file, for a tensor."""
    if path is None:
        return like.new_empty(shape)
    size = torch.Size(shape).numel()
    try:
        # A mapped file that finds the disk full ends the program without a word.
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size * like.element_size())
    except OSError as error:
        raise OutputError(f'The cache can\'t be written to "{path.parent}": {error.strerror}.') from error
    return torch.from_file(str(path), shared=True, size=size, dtype=like.dtype).view(shape)
