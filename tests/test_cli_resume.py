"""`--resume` on the command line: what goes on, what is refused, what is said."""

import io
import json
import shutil
import signal
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.sweeps.run import stages
from rankwise.tasks.digits import digits
from test_cli import QUICK, folder_of_digits, refused


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def stopped_once(data: Path) -> Path:
    """The directory of a run that SIGTERM has stopped before anything had finished."""
    out = data.parent / "out"
    sweep = stages.run_sweep

    def stopping(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return digits.accuracy(*args)

    def stopped_sweep(model: Any, runs: Any, problem: Any, *args: Any, **given: Any) -> Any:
        return sweep(model, runs, replace(problem, metric=stopping), *args, **given)

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        patch.setattr(stages, "run_sweep", stopped_sweep)
        code = main(["digits", *QUICK, "--data", str(data), "--out", str(out), "--quiet"])
    assert code == 130
    line = said.getvalue().splitlines()[-1]
    assert line == f"Interrupted; resume with: rankwise digits --resume {out}"
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of that directory."""
    return Path(shutil.copytree(stopped_once, tmp_path / "out", symlinks=True))


def test_it_goes_on_to_its_results(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digits", "--resume", str(stopped), "--quiet"]) == 0
    results = json.loads((stopped / "results.json").read_text())
    assert results["complete"]
    assert results["grid"]["ranks"] == [1, 2], "with its own options"
    assert "--resume" not in results["command"]
    assert not (stopped / "checkpoints").exists()
    assert f"{stopped} holds no unfinished run; --resume takes the directory of one." in refused(
        capsys, "digits", "--resume", str(stopped)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "1,3"], "--ranks is [1, 3], and [1, 2] in "),
        (["--tolerance", "0.1"], "--tolerance is 0.1, and None in "),
        (["--overwrite"], "--overwrite does not go with --resume, which takes all settings from "),
        (["--out", "elsewhere"], "--out does not go with --resume"),
        (["--config", "a.yaml"], "--config does not go with --resume"),
        (["--checkpoint-seconds", "0"], "checkpoint-seconds is 0.0; it must be a positive number"),
    ],
)
def test_flags_that_go_against_it(
    stopped: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert message in refused(capsys, "digits", "--resume", str(stopped), *flags)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_flags_that_say_the_same_are_no_conflict(stopped: Path) -> None:
    assert main(["digits", f"--resume={stopped}", "--ranks", "1:2", "--checkpoint-epochs", "1", "--quiet"]) == 0


def test_a_new_run_does_not_take_its_place(stopped: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"{stopped} holds an unfinished run; resume it with --resume {stopped}, give another directory"
    assert message in refused(capsys, "digits", *QUICK, "--out", str(stopped))
    assert main(["digits", *QUICK, "--data", str(data), "--out", str(stopped), "--overwrite", "--quiet"]) == 0
    assert not (stopped / "checkpoints").exists()


def test_what_is_damaged_is_said(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("base/model.safetensors", "config.yaml", "about.json", "plan.json"):
        path = stopped / "checkpoints" / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        message = refused(capsys, "digits", "--resume", str(stopped), "--quiet")
        assert "damaged" in message, (name, message)
        path.write_bytes(whole)
    base = stopped / "checkpoints" / "base" / "model.safetensors"
    base.unlink()
    assert "can't read base/model.safetensors" in refused(capsys, "digits", "--resume", str(stopped))


def test_data_that_are_gone(stopped: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = data.rename(data.parent / "moved")
    try:
        assert "No folder" in refused(capsys, "digits", "--resume", str(stopped))
    finally:
        moved.rename(data)


def test_a_full_disk_at_the_results(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    def full(*args: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full)
        message = refused(capsys, "digits", "--resume", str(stopped), "--quiet")
    assert "No space left on device" in message
    assert message.endswith(f"make room and resume with: rankwise digits --resume {stopped}")
    assert main(["digits", "--resume", str(stopped), "--quiet"]) == 0


def test_rungs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = folder_of_digits(tmp_path / "data"), tmp_path / "out"
    flags = ["--ranks", "1", "--seeds", "1", "--epochs", "3", "--lr", "1e-4,1e-3,1e-2", "--baseline-lr", "1e-3"]
    flags += ["--plan", "grid"]
    assert "--rungs is [3, 2]; give rising numbers" in refused(capsys, "digits", *flags, "--rungs", "3,2")
    assert main(["digits", *flags, "--rungs", "1,2", "--data", str(data), "--out", str(out), "--quiet"]) == 0
    results = json.loads((out / "results.json").read_text())
    statuses = [run["status"] for run in results["runs"]]
    assert sorted(statuses) == ["finished", "finished", "pruned", "pruned"]
    assert "rungs:" in (out / "config.yaml").read_text()
    for run in results["runs"]:
        assert (run["metric"] is None) == (run["status"] == "pruned")
        assert (run["adapter"] is not None) == (run["status"] == "finished" and run["method"] == "lora")


def test_a_plan_that_is_made_is_not_foretold(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dry-run does not go with --resume" in refused(capsys, "digits", "--resume", str(stopped), "--dry-run")


def test_a_run_that_was_moved_or_copied_goes_on_in_its_new_place(stopped: Path) -> None:
    copied = stopped.parent / "a copy"
    shutil.copytree(stopped, copied)
    moved = stopped.rename(stopped.parent / "moved")
    metrics: list[list[float]] = []
    for place in (copied, moved):
        assert main(["digits", "--resume", str(place), "--quiet"]) == 0
        metrics.append([run["metric"] for run in json.loads((place / "results.json").read_text())["runs"]])
        assert (place / "base" / "model.safetensors").exists()
    assert metrics[0] == metrics[1]
    assert not stopped.exists()
