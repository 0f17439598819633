"""`--resume DIR --more-seeds 3 --more-ranks 3,6` on the command line: a finished run goes on with more."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from rankwise.cli import main
from test_cli import folder_of_digits, refused
from test_resume import contents, ended

GRID = ["--ranks", "1,4", "--epochs", "1", "--lr", "3e-3", "--baseline-lr", "1e-3", "--plan", "grid", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    data = folder_of_digits(place / "data")
    assert main(["digits", *GRID, "--seeds", "2", "--data", str(data), "--out", str(place / "out")]) == 0
    return place / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out", symlinks=True))


def test_a_base_that_was_removed_is_made_again(out: Path, finished: Path) -> None:
    shutil.rmtree(out / "base")
    assert main(["digits", "--resume", str(out), "--more-ranks", "2", "--quiet"]) == 0
    assert (out / "base" / "model.safetensors").read_bytes() == (finished / "base" / "model.safetensors").read_bytes()


def test_seeds_and_ranks_are_added(out: Path, finished: Path, tmp_path: Path) -> None:
    data = finished.parent / "data"
    assert main(["digits", "--resume", str(out), "--more-seeds", "2", "--more-ranks", "3", "--quiet"]) == 0
    settings = yaml.safe_load((out / "config.yaml").read_text())["digits"]
    assert (settings["ranks"], settings["seeds"]) == ([1, 3, 4], [0, 1, 2, 3])
    assert settings["rotate"] is False, "two seeds validated on the same rows, and so do four"
    flags = ["--ranks", "1,3,4", "--seeds", "4", "--no-rotate", "--data", str(data), "--out", str(tmp_path / "at-once")]
    assert main(["digits", *GRID[2:], *flags]) == 0
    found, expected = (json.loads((place / "results.json").read_text()) for place in (out, tmp_path / "at-once"))
    assert [run["name"] for run in found["runs"]] == [run["name"] for run in expected["runs"]]
    for one, other in zip(found["configurations"], expected["configurations"], strict=True):
        assert (one["name"], one["n_seeds"], one["state"]) == (other["name"], other["n_seeds"], other["state"])
        assert one["mean"] == pytest.approx(other["mean"], abs=0.11), "in float32 a row of twenty may flip"
    assert found["answer"]["verdict"] == expected["answer"]["verdict"]
    assert (out / "base" / "model.safetensors").read_bytes() == (finished / "base" / "model.safetensors").read_bytes()
    assert not (out / "checkpoints").exists()


def test_a_plan_that_a_budget_has_ended_goes_on(finished: Path, tmp_path: Path) -> None:
    """As if it had been allowed from the start."""
    flags = ["digits", *GRID[:-3], "--seeds", "3", "--curve", "--quiet", "--data", str(finished.parent / "data")]
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert main([*flags, "--max-runs", "6", "--out", str(short)]) == 0
    assert main([*flags, "--max-runs", "12", "--out", str(whole)]) == 0
    runs = [len(json.loads((out / "results.json").read_text())["runs"]) for out in (short, whole)]
    assert runs[0] <= 6 < runs[1]
    assert main(["digits", "--resume", str(short), "--more-seeds", "0", "--max-runs", "12", "--quiet"]) == 0
    found, expected = (json.loads((out / "results.json").read_text()) for out in (short, whole))
    assert [run["name"] for run in found["runs"]] == [run["name"] for run in expected["runs"]]
    assert found["answer"]["verdict"] == expected["answer"]["verdict"]
    assert yaml.safe_load((short / "config.yaml").read_text())["digits"]["max-runs"] == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "holds no unfinished run; --resume takes the directory of one. To its finished run --more-seeds"),
        (["--more-seeds", "-1"], "--more-seeds is -1; give the number of seeds to add"),
        (["--more-seeds", "many"], '--more-seeds is "many"; give the number'),
        (["--more-ranks", "4,8"], "--more-ranks names [4], which the run has already; it has [1, 4]"),
        (["--more-seeds", "1", "--epochs", "2"], "--epochs is 2, and 1 in "),
        (["--more-seeds", "1", "--out", "elsewhere"], "--out does not go with --resume"),
    ],
)
def test_what_cannot_be_added(out: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert message in refused(capsys, "digits", "--resume", str(out), *flags)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_is_another_run_is_refused(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--more-seeds and --more-ranks add to a finished run" in refused(capsys, "digits", "--more-seeds", "1")
    assert "holds no finished run" in refused(capsys, "digits", "--resume", str(tmp_path), "--more-seeds", "1")
    again = ["digits", "--resume", str(out), "--more-seeds", "1", "--quiet"]
    base = out / "base" / "model.safetensors"
    whole = base.read_bytes()
    base.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "the base has other weights now" in refused(capsys, *again)
    base.write_bytes(whole)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 2"))
    assert "has other settings now" in refused(capsys, *again)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nth"), [("evaluation", 2), ("step", 2), ("half", 2), ("placing", 1), ("results", 1)])
def test_an_extension_that_is_killed(out: Path, finished: Path, tmp_path: Path, kind: str, nth: int) -> None:
    alone = Path(shutil.copytree(finished, tmp_path / "alone", symlinks=True))
    more = ["--more-seeds", "2", "--quiet", "--checkpoint-epochs", "1"]
    earlier = json.loads((out / "results.json").read_text())
    assert ended("none", 0, "digits", "--resume", str(alone), *more).returncode == 0
    assert ended(kind, nth, "digits", "--resume", str(out), *more).returncode == -signal.SIGKILL
    found = json.loads((out / "results.json").read_text())
    assert kind == "results" or found == earlier
    assert all((out / run["adapter"]).is_dir() for run in earlier["runs"] if run["adapter"])
    done = ended("none", 0, "digits", "--resume", str(out), "--quiet")
    assert done.returncode == 0, done.stderr
    mine, theirs = contents(out), contents(alone)
    for results in mine["results"], theirs["results"]:
        del results["plan"]["price"]
    assert mine == theirs, "equal bits"
