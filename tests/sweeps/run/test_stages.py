"""Rates beyond the grid are tried no longer than they keep up with those before them."""

from pathlib import Path

import pytest

from rankwise.lora.config import LoRAConfig
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.problem import DEFAULT_DATA, Problem, Splits
from rankwise.sweeps.run.stage import Search, StageResult
from rankwise.sweeps.run.stages import Stages
from rankwise.train.events import Observers
from rankwise.train.settings import Training
from small_sweep import accuracy, loss, small_model, some_data

EPOCHS = 3


def searched(lrs: tuple[float, ...], by_loss: bool, folder: Path | None = None, *, resume: bool = False) -> StageResult:
    splits = Splits(some_data(64, 0), some_data(40, 1), some_data(40, 2))
    data = {DEFAULT_DATA: splits, "search": Splits(some_data(32, 0), splits.validation, splits.test)}
    training = Training(lr=1.0, epochs=EPOCHS, batch_size=8)
    stages = Stages(
        model=small_model(),
        problem=Problem(data, loss, loss if by_loss else accuracy, higher_is_better=not by_loss),
        candidates=[
            Candidate(name="r4", label="", method="lora", training=training, lrs=lrs, lora=LoRAConfig(r=4)),
        ],
        seeds=(0,),
        observers=Observers(),
        search=Search(data="search", rungs=(1,)),
        widen=True,
        checkpoints=folder,
        resume=resume,
    )
    return stages.run()


@pytest.mark.parametrize("by_loss", [False, True])
def test_a_further_rate_that_is_behind_leaves_at_the_rung(by_loss: bool) -> None:
    found = searched((1e-4, 1e-2), by_loss).searched
    assert [(one["lr"], one["status"], one["steps"]) for one in found] == [
        (1e-4, "pruned", 4),
        (1e-2, "finished", 4 * EPOCHS),
        (1.0, "pruned", 4),
    ]


def test_a_further_rate_that_is_ahead_trains_to_its_end() -> None:
    found = searched((1e-5, 1e-4), by_loss=True)
    ended = [one["lr"] for one in found.searched if one["steps"] == 4 * EPOCHS]
    assert ended == [1e-4, 1e-3, 1e-2]
    assert {run.training.lr for run in found.swept.runs} == {1e-2}


def test_a_resumed_search_decides_alike(tmp_path: Path) -> None:
    first = searched((1e-4, 1e-2), False, tmp_path)
    again = searched((1e-4, 1e-2), False, tmp_path, resume=True)
    assert again.searched == first.searched
    assert [run.name for run in again.swept.runs] == [run.name for run in first.swept.runs]


@pytest.mark.parametrize(
    ("epochs", "patience", "rung"), [(60, None, 15), (60, 10, 10), (16, 10, 4), (60, 40, 15), (4, 2, 1), (3, 1, None)]
)
def test_rates_are_looked_at_after_a_quarter_of_the_epochs_or_the_patience(
    epochs: int, patience: int | None, rung: int | None
) -> None:
    training = Training(epochs=epochs, patience=patience)
    one = Candidate(name="r4", label="", method="lora", training=training, lrs=(1e-3, 1e-2), lora=LoRAConfig(r=4))
    data = {DEFAULT_DATA: Splits(some_data(64, 0), some_data(40, 1), some_data(40, 2))}
    problem = Problem(data, loss, accuracy, higher_is_better=True)
    stages = Stages(model=small_model(), problem=problem, candidates=[one], seeds=(0,), observers=Observers())
    assert stages.searching([one], 7)[1] == (() if rung is None else (rung,))
