"""The run directory: what may be written where, and that nothing is half there."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise.adapter_files import read_adapter
from rankwise.errors import OutputError, flags_named
from rankwise.sweeps.problem import SweepState
from rankwise.sweeps.storage.adapters import Adapters
from rankwise.sweeps.storage.directory import check_directory, write_run
from small_sweep import small_model, small_run, swept, typed_results_of


@pytest.fixture(scope="module")
def found() -> SweepState:
    return swept([small_run("r2"), small_run("full")])


def write(directory: Path, found: SweepState) -> None:
    folders = {"r2-lr0.03-s0": "adapters/r2-lr0.03-s0"}
    results = typed_results_of(found)
    for run in results.runs:
        run.adapter = folders.get(run.name)
    write_run(
        directory,
        results,
        "digits: {}\n",
        found,
        Adapters(small_model(), folders, "../../base"),
        keep_base=True,
    )


def test_new_and_empty_places_are_allowed_and_left_alone(tmp_path: Path) -> None:
    check_directory(tmp_path, overwrite=False)
    check_directory(tmp_path / "a" / "b", overwrite=False)
    assert not any(tmp_path.iterdir())


def test_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"notes\.txt is a file; give a directory"):
            check_directory(file, overwrite)
        with pytest.raises(OutputError, match=r"notes\.txt is a file; give a directory"):
            check_directory(file / "below", overwrite)
        with pytest.raises(OutputError, match=r"holds notes\.txt, which is no file of a run of rankwise"):
            check_directory(tmp_path, overwrite)


def test_results_are_replaced_only_when_asked(tmp_path: Path, found: SweepState) -> None:
    write(tmp_path, found)
    with pytest.raises(OutputError, match=r"holds results already; .* or overwrite=True to replace them"):
        check_directory(tmp_path, overwrite=False)
    with flags_named(), pytest.raises(OutputError, match=r"with --out, or --overwrite to replace them"):
        check_directory(tmp_path, overwrite=False)
    check_directory(tmp_path, overwrite=True)


def test_what_is_written(tmp_path: Path, found: SweepState) -> None:
    write(tmp_path / "run", found)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"results.json", "config.yaml", "curves.csv", "predictions.npz", "adapters", "base"}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    predictions = np.load(tmp_path / "run" / "predictions.npz")
    for run in results["runs"]:
        assert predictions[f"test/{run['name']}"].mean() == pytest.approx(run["metric"])
    with (tmp_path / "run" / "curves.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert [int(line["step"]) for line in lines if line["run"] == "full-lr0.03-s0"] == [5, 10, 15]
    config, tensors = read_adapter(tmp_path / "run" / "adapters" / "r2-lr0.03-s0")
    assert (config.r, config.alpha) == (2, 32.0)
    state = found.outcomes["r2-lr0.03-s0"].state
    assert all(torch.equal(A, state[f"{name}.A"]) for name, (A, _) in tensors.items())


def test_overwriting_leaves_nothing_of_the_old_results(tmp_path: Path, found: SweepState) -> None:
    write(tmp_path, found)
    old = json.loads((tmp_path / "results.json").read_text())
    stale = tmp_path / "adapters" / "r99-s0"
    stale.mkdir()
    old["runs"].append({"adapter": "adapters/r99-s0"})
    (tmp_path / "results.json").write_text(json.dumps(old))
    (tmp_path / "mine.txt").write_text("mine")
    write(tmp_path, found)
    assert not stale.exists()
    assert (tmp_path / "mine.txt").exists()
    assert not (tmp_path / "checkpoints").exists()


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_earlier_results_as_they_were(
    tmp_path: Path, found: SweepState, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, found)
    before = contents(tmp_path)

    def full_disk(*args: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OutputError, match=r"predictions\.npz can't be written \(No space left on device\)"):
        write(tmp_path, found)
    assert contents(tmp_path) == before, "earlier results stay as they were"
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
