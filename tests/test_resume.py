"""A sweep that is killed and gone on with gives what one gives that was left alone, bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fresh
import killed_run
from test_cli import folder_of_digits, idx

TESTS = Path(__file__).parent
FLAGS = [
    "--ranks",
    "1,2,5",
    "--seeds",
    "2",
    "--lr",
    "1e-3,3e-2,1e-2",
    "--baseline-lr",
    "1e-3,1e-2",
    "--batch-size",
    "4",
]
FLAGS += ["--epochs", "5", "--rungs", "1,3", "--plan", "grid", "--quiet"]
OFTEN = ["--checkpoint-epochs", "1"]
ADAPTIVE = ["--ranks", "1,2,4,8", "--seeds", "6", "--lr", "1e-3,1e-2", "--baseline-lr", "1e-3,3e-3"]
ADAPTIVE += ["--batch-size", "32", "--epochs", "4", "--tolerance", "6%", "--plan", "auto", "--quiet"]
IN_TWO = ["--processes", "2"]

SOME = [("half", 9), ("evaluation", 4), ("rung", 2)]
"""Moments that every run of the tests tries; `ALL` has them and more."""

IN_A_WRITE = [("fsync", 1), ("fsync", 8), ("replace", 2), ("replace", 5), ("replace", 11), ("half", 3), ("half", 9)]
AT_A_RUNG = [("rung", 1), ("rung", 2), ("pruning", 2)]
IN_EVALUATION = [("evaluation", 1), ("evaluation", 4), ("evaluation", 9)]
AT_THE_END = [("placing", 2), ("results", 1)]
ALL = [*IN_A_WRITE, *AT_A_RUNG, *IN_EVALUATION, *AT_THE_END, *(("random", i) for i in range(5))]

AT_A_DECISION = [*(("decision", i) for i in (1, 2, 3, 4, 6)), ("comparison", 4), ("comparison", 17)]
AFTER_A_CHOICE = [("choice", 2), ("choice", 40)]
ADAPTIVE_WRITES = [("fsync", 3), ("fsync", 40), ("replace", 7), ("replace", 50), ("half", 5), ("half", 30)]
ALL_ADAPTIVE = [*AT_A_DECISION, *AFTER_A_CHOICE, *ADAPTIVE_WRITES]
ALL_ADAPTIVE += [("step", 150), ("evaluation", 3), ("evaluation", 30), ("placing", 2), ("random", 7)]


def environment() -> dict[str, str]:
    paths = [str(TESTS.parent / "src"), str(TESTS)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def ended(kind: str, nth: int, *flags: str) -> fresh.Ended:
    return fresh.call(killed_run.run, kind, nth, *flags)


def ended_after(seconds: float, *flags: str) -> int:
    """Run the command, and kill it this many seconds after its training has begun."""
    out = Path(flags[flags.index("--out") + 1])
    with fresh.start(killed_run.run, "none", 0, *flags) as running:
        while running.process.is_alive() and not (out / "checkpoints" / "plan.json").exists():
            time.sleep(0.001)
        time.sleep(seconds)
        running.process.kill()
        return running.end().returncode


def contents(directory: Path) -> dict[str, Any]:
    """What a run directory holds, less seconds, dates and the machine."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    results = json.loads(files.pop("results.json").read_text())
    for key in ("seconds", "started", "command", "versions", "device"):
        del results[key]
    for run in results["runs"]:
        del run["seconds"]
    predictions = np.load(files.pop("predictions.npz"))
    kept = ("adapters", "base", "checkpoints", "config", "curves.csv")
    compared = {name: path.read_bytes() for name, path in files.items() if name.startswith(kept)}
    return {"results": results, "predictions": {key: predictions[key].tobytes() for key in predictions}, **compared}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that can be told apart, so that sizes differ: a pattern for each digit, and noise."""
    folder, random = tmp_path_factory.mktemp("digits") / "patterns", np.random.default_rng(0)
    folder.mkdir()
    pattern = random.integers(0, 256, (10, 28, 28))
    for prefix, n in (("train", 400), ("t10k", 100)):
        labels = np.arange(n) % 10
        images = np.clip(pattern[labels] + random.normal(0, 120, (n, 28, 28)), 0, 255)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images.astype(np.uint8)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
    return folder


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory, patterns: Path) -> tuple[dict[str, Any], float]:
    """What the adaptive sweep gives when it is left alone, and the seconds that it takes."""
    out = tmp_path_factory.mktemp("decided") / "out"
    done = ended("none", 0, "digits", *ADAPTIVE, "--data", str(patterns), "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = contents(out)
    assert found["results"]["answer"]["verdict"] == "shown"
    return found, json.loads((out / "results.json").read_text())["seconds"]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[dict[str, Any], float]:
    """What the run gives when it is left alone, and the seconds that it takes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    done = ended("none", 0, "digits", *FLAGS, "--data", str(data), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert not (out / "checkpoints").exists()
    found = contents(out)
    statuses = {run["status"] for run in found["results"]["runs"]}
    assert statuses == {"finished", "pruned"}
    return found, json.loads((out / "results.json").read_text())["seconds"]


@pytest.fixture(scope="module")
def decided_in_two(tmp_path_factory: pytest.TempPathFactory, patterns: Path) -> tuple[dict[str, Any], float]:
    """What the adaptive sweep gives in two processes, and the seconds that it takes."""
    out = tmp_path_factory.mktemp("decided in two") / "out"
    done = ended("none", 0, "digits", *ADAPTIVE, *IN_TWO, "--data", str(patterns), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return contents(out), json.loads((out / "results.json").read_text())["seconds"]


def assert_goes_on(out: Path, left_alone: dict[str, Any], *flags: str) -> None:
    assert (out / "checkpoints" / "plan.json").exists()
    done = ended("none", 0, "digits", "--resume", str(out), "--quiet", *flags)
    assert done.returncode == 0, done.stderr
    found = contents(out)
    assert found.keys() == left_alone.keys()
    for key, value in left_alone.items():
        assert found[key] == value, key
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(("kind", "nth"), SOME)
def test_killed_at_some_moments(
    tmp_path: Path, data: Path, left_alone: tuple[dict[str, Any], float], kind: str, nth: int
) -> None:
    killed_and_resumed([*FLAGS, "--data", str(data)], tmp_path, left_alone, kind, nth)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nth"), ALL)
def test_killed_at_20_moments(
    tmp_path: Path, data: Path, left_alone: tuple[dict[str, Any], float], kind: str, nth: int
) -> None:
    killed_and_resumed([*FLAGS, "--data", str(data)], tmp_path, left_alone, kind, nth)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nth"), ALL_ADAPTIVE)
def test_an_adaptive_sweep_killed_at_20_moments(
    tmp_path: Path, patterns: Path, decided: tuple[dict[str, Any], float], kind: str, nth: int
) -> None:
    killed_and_resumed([*ADAPTIVE, "--data", str(patterns)], tmp_path, decided, kind, nth)


def killed_and_resumed(
    flags: list[str], tmp_path: Path, left_alone: tuple[dict[str, Any], float], kind: str, nth: int
) -> None:
    found, seconds = left_alone
    flags = ["digits", *flags, *OFTEN, "--out", str(tmp_path / "out")]
    if kind == "random":
        delay = random.Random(nth).uniform(0, 0.5 * seconds)
        # On a machine whose load has changed it may have ended by then.
        while (code := ended_after(delay, *flags)) == 0:
            shutil.rmtree(tmp_path / "out")
            delay /= 2
    else:
        code = ended(kind, nth, *flags).returncode
    assert code == -signal.SIGKILL
    assert_goes_on(tmp_path / "out", found)


@pytest.mark.parametrize("nth", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 10))])
def test_a_sweep_in_two_processes_killed(
    tmp_path: Path, patterns: Path, decided_in_two: tuple[dict[str, Any], float], nth: int
) -> None:
    found, seconds = decided_in_two
    flags = ["digits", *ADAPTIVE, *IN_TWO, *OFTEN, "--data", str(patterns), "--out", str(tmp_path / "out")]
    delay = random.Random(nth).uniform(0, 0.8 * seconds)
    while (code := ended_after(delay, *flags)) == 0:
        shutil.rmtree(tmp_path / "out")
        delay /= 2
    assert code == -signal.SIGKILL
    assert_goes_on(tmp_path / "out", found, *IN_TWO)


def test_there_are_20_moments() -> None:
    assert len(ALL) == len(ALL_ADAPTIVE) == 20
    assert {*SOME} <= {*ALL}
