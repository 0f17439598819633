"""A worker's experiment comes from the run directory, and a run directory that it doesn't see is a mistake."""

from pathlib import Path
from threading import Lock

import pytest
import torch

from rankwise.errors import ConfigError
from rankwise.sweeps.run.units.actor import FromFile, UnitActor, WorkerContext, write_experiment
from small_sweep import loss, small_model, small_problem


def test_an_experiment_goes_through_a_file(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    model, shift = small_model(), 2.0
    model.register_parameter("tied", model[0].weight)
    inputs = torch.randn(5, 6)
    write_experiment(tmp_path / "a.pt", WorkerContext(model, lambda x: x + shift, [loss]))
    made = FromFile(tmp_path / "a.pt")()
    assert torch.equal(made.model(inputs), model(inputs))
    assert made.model.tied is made.model[0].weight
    assert made.problem(1.0) == 3.0
    made.model[0].weight.data.zero_()  # in memory alone
    assert torch.equal(FromFile(tmp_path / "a.pt")().model(inputs), model(inputs))


def test_what_cannot_be_pickled_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"can't be pickled for workers \(.*lock.*\); keep open files, locks and"):
        write_experiment(tmp_path / "a.pt", WorkerContext(small_model(), Lock(), []))
    assert not [*tmp_path.iterdir()]


def test_a_worker_that_does_not_see_the_run_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    actor = UnitActor(
        lambda: WorkerContext(small_model(), small_problem(), []), tmp_path / "none", torch.get_num_threads(), tmp_path
    )
    with pytest.raises(ConfigError, match=r"none can't be reached from .*, where a worker runs; give out on a file"):
        next(actor.run(0, None))
