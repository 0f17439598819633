"""Inspect a model before the first step: find where it draws noise, and check that nothing in it ties rows,
adapters or steps together but its weights.

All of it is found by running the model on a few rows, in the mode in which it will run.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.base.attributes import Attributes, Place
from rankwise.lora.base.checksum import checksum
from rankwise.pack.batches import Batch, batch_tensors, chosen_rows
from rankwise.pack.memory import ran_out
from rankwise.pack.model.base_state import BaseState
from rankwise.pack.model.known import computes_rows
from rankwise.pack.model.later import refuse_counts
from rankwise.pack.model.probe import coarsest, differing, failing, place_of, refuse_mixed_rows, same
from rankwise.pack.model.trace import Trace, rows_dim, trace
from rankwise.pack.modes import set_mode

SharedBatches = Callable[[Batch], Tensor]

SharedCall = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> outputs."""

ALL_KEPT = 1 - 2.0**-24
"""In place of every uniform number: dropout drops nothing."""


@dataclass(frozen=True)
class ModelInspection:
    """The results of inspecting a model.

    Args:
        first: A forward pass on two rows.
        larger: One on three.
        dims: For each module whose draws can be keyed, the dimension with rows of each draw; None for one without.
        rowless: What draws noise without rows on which the outputs depend, in words; "" where nothing does.
        unkeyed: What draws noise that can't be keyed, in words; "" where nothing does.
    """

    first: Trace
    larger: Trace
    dims: dict[str, list[int | None]]
    rowless: str = ""
    unkeyed: str = ""

    def dims_of_inputs(self, layers: Collection[str]) -> dict[str, tuple[int | None]]:
        """Where the inputs of layers have the rows, under the names of their adapters' dropout; layers that get a part
        of the rows are left out."""
        dims: dict[str, tuple[int | None]] = {}
        for name in layers:
            shapes, more = (t.shapes.get(name, {}) for t in (self.first, self.larger))
            if 0 in shapes and 0 in more:
                with suppress(ValueError):
                    dims[f"{name}.lora"] = (rows_dim(shapes[0], more[0], self.first.rows, self.larger.rows),)
        return dims


class Inspections:
    """What inspections of a base found, for all packs of one sweep: the base stays as it is from one to the next, and
    an inspection takes some fourteen passes.

    Copies and pickles of it are empty, as what was found may be of another model there.
    """

    def __init__(self) -> None:
        # The model and the function are kept with what was found, so that their ids stay theirs.
        self._found: dict[tuple[object, ...], tuple[nn.Module, SharedCall, ModelInspection]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_found": {}}

    def inspect(
        self, model: nn.Module, call: SharedCall, example: Batch, base: BaseState, *, rows: int, training: bool
    ) -> ModelInspection:
        """Return what inspecting the model finds, once for each example, number of rows and mode.

        Args:
            model: The base.
            call: How it is run on a batch.
            example: As for `inspect_model`, which says what the rest is and what is raised.
        """
        values = [(tuple(t.shape), t.dtype, int(checksum(t))) for t in batch_tensors(example)]
        key = (id(model), id(call), rows, training, *values)
        if key not in self._found:
            if computes_rows(model, call, example):
                found = _inspect_known(model, lambda batch: call(model, batch), example, training)
            else:
                found = inspect_model(
                    model, lambda batch: call(model, batch), example, base, rows=rows, training=training
                )
            self._found[key] = model, call, found
        return self._found[key][2]


def inspect_model(
    model: nn.Module, run: SharedBatches, example: Batch, base: BaseState, *, rows: int, training: bool
) -> ModelInspection:
    """Run a model on a few rows and find what a pack must know of it. Its buffers and modes stay as they were.

    Args:
        model: The model.
        run: Runs it on a batch.
        example: Two rows or more.
        base: What the model holds now.
        rows: On how many rows it is looked whether they mix: as many as pass at once.
        training: Whether it is to run in train mode.

    Raises:
        PackError: It can't be trained in a pack.
    """
    set_mode(model, training)
    try:
        first, larger = (_trace_of(model, run, example, n) for n in (2, 3))
        numbers = Attributes(model)
        again = _trace(model, run, example, range(2))
        moved = numbers.changed_places()
        base.check(training=training, quick=False)
        dims, unsure = _dims(first, larger)
        odd = [f"{place_of(model, name)} draws random numbers from {what}" for name, what in first.unanswered.items()]
        odd += [
            f"{place_of(model, name)} draws noise of a shape that doesn't grow with the rows alone" for name in unsure
        ]
        unkeyed = next(iter(odd), "")
        if not same(again.outputs, first.outputs, coarsest(model)):
            _refuse_unrepeatable(model, run, example)
        _refuse_counts(model, run, example, moved, training)
        if not training:
            _refuse_noise(model, run, example, first)
        rowless = "" if unkeyed else _rowless(model, run, example, dims)
        _refuse_mixed(model, run, example, max(2, rows), training, training and not unkeyed)
        return ModelInspection(first, larger, dims, rowless, unkeyed)
    finally:
        base.restore()
        set_mode(model, training)


def _inspect_known(model: nn.Module, run: SharedBatches, example: Batch, training: bool) -> ModelInspection:
    """What `inspect_model` finds where nothing that it refuses can be."""
    set_mode(model, training)
    first, larger = (_trace_of(model, run, example, n) for n in (2, 3))
    return ModelInspection(first, larger, _dims(first, larger)[0])


def _trace(model: nn.Module, run: SharedBatches, example: Batch, rows: Sequence[int], **noted: Any) -> Trace:
    batch = chosen_rows(example, rows)
    return trace(model, lambda: run(batch), len(rows), **noted)


def _trace_of(model: nn.Module, run: SharedBatches, example: Batch, n: int) -> Trace:
    """The trace of the first n rows.

    Raises:
        PackError: The model can't run on so many.
    """
    try:
        return _trace(model, run, example, range(n))
    except (RuntimeError, ValueError, IndexError) as error:
        if ran_out(error):
            raise
        where = place_of(model, failing(model, lambda: run(chosen_rows(example, range(n)))))
        raise PackError(
            f"The model can't run on {n} rows, in {where}. In a pack the rows of all adapters pass through the model "
            "together, so it must run on any number of rows."
        ) from error


def _dims(first: Trace, larger: Trace) -> tuple[dict[str, list[int | None]], list[str]]:
    """The row dimension of each module's draws; and the modules where it can't be determined."""
    dims: dict[str, list[int | None]] = {}
    unsure: list[str] = []
    for name in {**first.draws, **larger.draws}:
        pairs = first.draws.get(name, []), larger.draws.get(name, [])
        try:
            if len(pairs[0]) != len(pairs[1]):
                raise ValueError(f"{len(pairs[0])} and {len(pairs[1])} draws")
            dims[name] = [rows_dim(one, other, first.rows, larger.rows) for one, other in zip(*pairs, strict=True)]
        except ValueError:
            unsure.append(name)
    return dims, unsure


def _refuse_unrepeatable(model: nn.Module, run: SharedBatches, example: Batch) -> None:
    def once() -> None:
        _trace(model, run, example, range(2))

    where = place_of(model, differing(model, once, once))
    raise PackError(
        f"The outputs of the same two rows differ from one forward pass to the next, in {where}, though all random "
        "numbers were the same: it draws from a generator that can't be seeded, or remembers earlier passes. Make it a "
        "function of its inputs and weights."
    )


def _refuse_counts(
    model: nn.Module, run: SharedBatches, example: Batch, moved: Sequence[tuple[Place, float]], training: bool
) -> None:
    """Raise where outputs, in train mode or in eval mode, depend on a number that each pass changes."""

    def outputs() -> Tensor:
        return _trace(model, run, example, range(2)).outputs

    for mode in dict.fromkeys((training, False)) if moved else ():
        set_mode(model, mode)
        refuse_counts(moved, outputs(), outputs)
    set_mode(model, training)


def _refuse_noise(model: nn.Module, run: SharedBatches, example: Batch, first: Trace) -> None:
    """Raise where the outputs in eval mode depend on noise."""
    if not first.noisy:
        return
    some, others = (_trace(model, run, example, range(2), constant=u).outputs for u in (0.0, ALL_KEPT))
    if first.unanswered or not same(some, others, coarsest(model)):
        raise PackError(
            f"{place_of(model, first.noisy[0])} draws noise in eval mode too, so no metric would be the same twice. "
            "Switch it off there, as by F.dropout(x, p, training=self.training)."
        )


def _rowless(model: nn.Module, run: SharedBatches, example: Batch, dims: Mapping[str, Sequence[int | None]]) -> str:
    """Describe noise without rows that the outputs depend on."""
    found = {(name, i) for name, places in dims.items() for i, dim in enumerate(places) if dim is None}
    if not found:
        return ""

    def outputs(value: float) -> Tensor:
        def fixed(name: str, i: int) -> float | None:
            return value if (name, i) in found else None

        return _trace(model, run, example, range(2), constant=0.5, fixed=fixed).outputs

    # What may be skipped at random (LayerDrop) draws at a rate of 0 too.
    alike = same(outputs(0.0), outputs(ALL_KEPT), coarsest(model))
    return "" if alike else f"{place_of(model, min(found)[0])} draws noise that all rows share"


def _refuse_mixed(
    model: nn.Module, run: SharedBatches, example: Batch, rows: int, training: bool, also_in_training: bool
) -> None:
    """Raise where rows mix, in eval mode, where noise is refused too, or in train mode without its noise."""
    set_mode(model, False)
    if training:
        _refuse_noise(model, run, example, _trace(model, run, example, range(2)))
    fewer = len(batch_tensors(example)[0])
    with torch.no_grad():
        refuse_mixed_rows(model, lambda chosen: run(chosen_rows(example, chosen)), rows, fewer)
    if also_in_training:
        set_mode(model, True)

        def silent(chosen: Sequence[int]) -> Tensor:
            return _trace(model, run, example, chosen, constant=ALL_KEPT).outputs

        refuse_mixed_rows(model, silent, rows, fewer, "in training ")
