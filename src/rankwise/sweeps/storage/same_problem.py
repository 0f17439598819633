"""Whether a run is resumed with the model's code, loss and metric that it began with: none of them has a checksum."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from rankwise.errors import CheckpointError
from rankwise.pack.batches import mapped
from rankwise.pack.losses import PerAdapter
from rankwise.sweeps.measure import base_rows
from rankwise.sweeps.plan.plan import surroundings
from rankwise.sweeps.problem import Problem, Splits
from rankwise.sweeps.storage.owned import MEASURED
from rankwise.writing import read_checked, write_checked

FORMAT = "rankwise-measured-1"
LOSS = "loss on the first rows"
COMPARED_ROWS = 16
"""Of the training data, for the loss."""

SAME, ELSEWHERE = 1e-5, 1e-3
"""Relative differences that are let pass: by the order of sums, and by another machine or version of torch."""


def first_loss(model: nn.Module, problem: Problem, splits: Splits) -> float:
    """The base's loss on the first rows of the training data."""
    # A loss need not be a mean of rows, so these pass at once.
    loss = PerAdapter(problem.loss, "loss", piece=COMPARED_ROWS)
    return float(base_rows(model, problem, mapped(splits.train, lambda t: t[:COMPARED_ROWS]), loss).mean())


def write_measured(folder: Path, model: nn.Module, measured: Mapping[str, float]) -> None:
    """Keep what was measured on the base as the run began, in the folder that it is resumed from.

    Raises:
        OutputError: It can't be written.
    """
    plain = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    write_checked(folder / MEASURED, FORMAT, {"values": plain, "made_with": surroundings(model)})


def check_measured(folder: Path, model: nn.Module, measured: Mapping[str, float]) -> None:
    """Compare the base's figures now with those at the start of the run.

    Metrics that count rows are compared only where the run began on the same device and version: single rows flip.

    Raises:
        CheckpointError: They differ.
    """
    begun = read_checked(folder / MEASURED, FORMAT)
    same = begun["made_with"] == surroundings(model) and begun["made_with"]["device"] == "cpu"
    before = begun["values"]
    for name, value in measured.items():
        then = before.get(name)
        if name != LOSS and not same:
            continue
        now = value if math.isfinite(value) else None
        if then is not None and now is not None and math.isclose(then, now, rel_tol=SAME if same else ELSEWHERE):
            continue
        if then != now:
            raise CheckpointError(
                f"The run in {folder} can't be resumed. The base's {name} is {value:.6g} now, and was "
                f"{'not there' if then is None else f'{then:.6g}'} when it began: the code of the model, the loss or "
                "the metric is another."
            )
