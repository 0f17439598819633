"""The command line as a user meets it: exit codes, what is printed where, what is left behind."""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml

import fresh
from rankwise import experiment
from rankwise.cli import main
from rankwise.report import write_report

SRC = Path(__file__).parent.parent / "src"
QUICK = ["--ranks", "1,2", "--seeds", "1", "--epochs", "1", "--lr", "3e-3", "--baseline-lr", "1e-3"]
QUICK += ["--plan", "grid"]


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def folder_of_digits(folder: Path, **changed: bytes) -> Path:
    """Four IDX files of random images; `train_labels=...` and the like replace one."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for prefix, n in (("train", 48), ("t10k", 20)):
        files = {
            "images": ("images-idx3-ubyte", idx(random.integers(0, 256, (n, 28, 28), np.uint8))),
            "labels": ("labels-idx1-ubyte", idx((np.arange(n) % 10).astype(np.uint8))),
        }
        for what, (name, content) in files.items():
            (folder / f"{prefix}-{name}").write_bytes(changed.get(f"{prefix}_{what}", content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str, str]:
    """A run whose figures and page were drawn, also where the test that asks first has none drawn; what it printed."""
    out, said, errors = tmp_path_factory.mktemp("cli") / "run", io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(errors):
        patch.setattr(experiment, "write_report", write_report)
        assert main(["digits", *QUICK, "--data", str(data), "--out", str(out), "--json"]) == 0
    return out, said.getvalue(), errors.getvalue()


@pytest.fixture
def finished(printed: tuple[Path, str, str]) -> Path:
    return printed[0]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error that a command with a mistake in it ends with."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if not line.startswith("Pretraining")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("rankwise: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "a,b"], '"a,b" is no list of whole numbers'),
        (["--ranks", "0"], "--ranks is [0]; give one or more whole numbers"),
        (["--ranks"], "--ranks requires at least 1 element"),
        (["--seeds", "-1"], "--seeds is [-1]"),
        (["--lr", "fast"], '"fast" is no list of learning rates'),
        (["--epochs", "x"], 'unable to convert "x"'),
        (["--epochs", "0"], "--epochs is 0"),
        (["--protocol", "publishd"], 'Did you mean "published"?'),
        (["--epoch", "3"], "Unknown option: --epoch. Did you mean --epochs?"),
        (["--optimiser", "adamv"], 'optimiser "adamv" is not known; there are adamw, sgd'),
        (["--device", "frob"], 'There is no device "frob" here'),
        (["--data", "nowhere/at/all"], 'No folder "nowhere/at/all"'),
        (["--data", "mnits"], 'Did you mean "mnist"?'),
        (["--config", "nowhere.yaml"], "nowhere.yaml can't be read (No such file or directory)"),
        (["more"], "more"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, "digits", "--out", str(tmp_path / "out"), *arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": idx(np.zeros((48, 28, 28), np.uint8))[:-100]}, "is cut off"),
        ({"train_images": b"PK\x03\x04 something else"}, "begins with 0x504b0304"),
        ({"t10k_labels": idx(np.full(20, 10, np.uint8))}, "a label is 10; labels are 0 to 9"),
        ({"train_labels": idx(np.zeros(48, np.uint8))}, "no image with a label from 5 to 9"),
    ],
)
def test_data_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, bytes], message: str
) -> None:
    data = folder_of_digits(tmp_path / "data", **changed)
    assert message in refused(capsys, "digits", *QUICK, "--data", str(data), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_digits(finished: Path) -> None:
    assert json.loads((finished / "results.json").read_text())["data"]["test"]["n"] == 20


def test_what_is_trained_follows_from_what_is_found(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --plan: rates at one rank and the baseline, with a seed that decides nothing; then ranks, the curve."""
    out = tmp_path / "out"
    flags = ["digits", "--ranks", "1,2", "--seeds", "2", "--epochs", "1", "--lr", "3e-3,1e-2", "--baseline-lr", "1e-3"]
    flags += ["--data", str(data), "--out", str(out), "--quiet"]
    assert main([*flags, "--dry-run", "--json"]) == 0
    assert [len(pack["runs"]) for pack in json.loads(capsys.readouterr().out)["packs"]] == [2, 2, 2]
    assert main(flags) == 0
    results = json.loads((out / "results.json").read_text())
    assert [one["configuration"] for one in results["grid"]["search"]] == ["r2", "r2"]
    assert {run["configuration"] for run in results["runs"]} == {"r1", "r2", "full"}
    assert {run["seed"] for run in results["runs"]} == {0, 1}
    assert "--max-runs is 3; " in refused(capsys, *flags, "--overwrite", "--max-runs", "3")


def test_other_results_are_kept(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "holds results already" in refused(capsys, "digits", *QUICK, "--out", str(finished))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("digits:\n  rankz: [1]\n", "[rankz]"),
        ("digit:\n  ranks: [1]\n", 'has settings of "digit"; there are commands combine, compare, digits, '),
        ("digits: [", "is no YAML file: "),
        ("", "does not hold the settings of a command"),
        ("[1, 2]", "does not hold the settings of a command"),
        ("digits: 3", "does not hold the settings of a command"),
        ("digits:\n  ranks: [1, x]\n", '"1,x" is no list of whole numbers'),
        ("digits:\n  epochs: [1, 2]\n", "settings.yaml"),
        ("\x00", "is no YAML file"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    (tmp_path / "settings.yaml").write_text(content)
    arguments = ["digits", "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "out")]
    assert message in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--ranks", "1:8:x2", "--seeds", "7:7", "--lr", "1e-5,3e-4", "--alpha", "16", "--tolerance", "0.02"],
        ["--seeds", "3", "--protocol", "published", "--epochs", "5", "--batch-size", "32", "--data", "mnist"],
    ],
)
def test_the_printed_configuration_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert main(["digits", *flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    for spelling in (["--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        assert main(["digits", *spelling, "--print_config"]) == 0
        assert capsys.readouterr().out == printed
    assert main(["digits", "--config", str(tmp_path / "c.yaml"), "--ranks", "3", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["digits"]["ranks"] == [3], "flags go before the file"


def test_the_run_directory_repeats_from_its_own_configuration(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", "--config", str(finished / "config.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == (finished / "config.yaml").read_text()


def test_json_is_all_there_is_on_standard_output(printed: tuple[Path, str, str]) -> None:
    out, said, errors = printed
    assert json.loads(said) == json.loads((out / "results.json").read_text())["answer"]
    assert "trainable" in errors
    assert "report.html" in errors


def test_report_redraws(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = {"results.json", "curves.csv"}
    for name in copied:
        shutil.copy(finished / name, tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    drawn = sorted({path.name for path in tmp_path.iterdir()} - copied)
    assert drawn
    for name in drawn:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give a run directory, which holds results.json" in refused(capsys, "report", str(tmp_path / "none"))
    assert not any(tmp_path.iterdir())


def test_diverged_runs_give_an_exit_code_of_their_own(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*QUICK, "--lr", "3e-3,1e30"]
    arguments = [a for i, a in enumerate(arguments) if i not in (6, 7)]
    assert main(["digits", *arguments, "--data", str(data), "--out", str(tmp_path / "out"), "--quiet"]) == 3
    assert "Diverged, and left out: r1-lr1e+30-s0" in " ".join(capsys.readouterr().out.split())


def interrupted(out: Path, *flags: str, after: str) -> tuple[int, str]:
    """Start a run, press Ctrl-C when a line of its log begins or ends so, and give exit code and log."""
    arguments = ["digits", "--ranks", "1", "--seeds", "1", "--out", str(out), *flags]
    with fresh.start(main, arguments) as running:
        for line in running.lines():
            if after in line:
                os.kill(running.process.pid, signal.SIGINT)
                break
        ended = running.end()
    return ended.returncode, ended.stderr


def test_ctrl_c_keeps_what_had_finished(tmp_path: Path) -> None:
    # LoRA, whose epochs are few, has finished when the baseline, which comes after it, has only begun.
    flags = ["--protocol", "published", "--epochs", "1", "--baseline-lr", "1e-9,2e-9,3e-9", "--batch-size", "8"]
    code, log = interrupted(tmp_path / "out", *flags, after="r1 (lr 0.0002) finished")
    assert code == 130, log
    assert "Traceback" not in log
    out = tmp_path / "out"
    go_on = f"resume with: rankwise digits --resume {out}"
    assert log.splitlines()[-1] == f"Interrupted: what had finished is in {out}; {go_on}"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["complete"] is False
    assert results["answer"] is None
    statuses = {run["configuration"]: run["status"] for run in results["runs"]}
    assert statuses["r1"] == "finished"
    assert statuses["full"] == "stopped"
    assert (tmp_path / "out" / "report.html").exists()


def test_ctrl_c_before_the_training(tmp_path: Path) -> None:
    code, log = interrupted(tmp_path / "out", "--epochs", "500", after="Pretraining the base")
    assert code == 130, log
    assert log.splitlines()[-1] == "Interrupted; nothing was written."
    assert "Traceback" not in log
    assert not any(tmp_path.iterdir())


def test_ctrl_c_before_anything_had_finished(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, log = interrupted(out, "--data", str(data), "--epochs", "5000", after="Training ")
    assert code == 130, log
    go_on = f"resume with: rankwise digits --resume {out}"
    assert log.splitlines()[-1] == f"Interrupted; {go_on}"
    assert "Traceback" not in log
    assert [path.name for path in out.iterdir()] == ["checkpoints"]


def test_help_tells_every_flag_and_needs_no_torch() -> None:
    script = "import sys; from rankwise.cli import main; code = main(['digits', '--help']); "
    script += "sys.exit(code or 10 * ('torch' in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for flag in ("--ranks", "--seeds", "--protocol", "--data", "--epochs", "--lr", "--out", "--device", "--config"):
        assert flag in done.stdout


def test_a_dry_run_tells_and_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["digits", "--ranks", "1,2", "--seeds", "1", "--lr", "1e-3,1e-2", "--baseline-lr", "1e-3", "--epochs", "40"]
    flags += ["--plan", "grid", "--data", str(data), "--out", str(tmp_path / "out"), "--quiet", "--dry-run"]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "2 x r1, 2 x r2" in said
    assert "5 runs in 2 packs" in said
    assert "Nothing was written." in said
    assert main([*flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total_runs"], [len(pack["runs"]) for pack in told["packs"]]) == (5, [4, 1])
    assert [pack["epochs"] for pack in told["packs"]] == [40, 40]
    assert told["program_bytes"] > 0
    assert told["peak_bytes"] == max(pack["peak_bytes"] for pack in told["packs"]) > told["base_bytes"]
    assert told["seconds"] == pytest.approx(told["planning"] + sum(pack["seconds"] for pack in told["packs"]))
    assert min(pack["seconds"] for pack in told["packs"]) > 0
    assert not any(tmp_path.iterdir())
