"""`rankwise work`: units in any process, twice or stopped in the middle, come to what one process comes to."""

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rankwise.cli import main
from rankwise.cli.training import RunOptions
from rankwise.cli.workers import idle_gpus
from rankwise.locking import locked
from rankwise.results import read_results
from rankwise.sweeps.plan.spreading import spread
from rankwise.sweeps.run.units import train as unit_training
from rankwise.sweeps.run.units.unit import Units, ranges
from rankwise.tasks.digits import digits
from test_cli import folder_of_digits, refused
from test_resume import contents

FLAGS = ["--ranks", "1,2", "--seeds", "1", "--lr", "1e-3,3e-2", "--baseline-lr", "1e-3,1e-2", "--batch-size", "8"]
FLAGS += ["--epochs", "3", "--rungs", "1", "--plan", "grid", "--quiet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("one") / "out"
    assert main(["digits", *FLAGS, "--data", str(data), "--out", str(out)]) == 0
    return contents(out)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run whose first units, 0 and 1, are written and not trained."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert main(["digits", *FLAGS, "--data", str(data), "--out", str(out), "--prepare"]) == 0
    return out


@pytest.fixture
def out(tmp_path: Path, prepared: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "out")
    return tmp_path / "out"


def work(out: Path, *flags: str) -> int:
    return main(["work", str(out), *flags, "--quiet"])


def units_in(out: Path) -> Units:
    return Units(out / "checkpoints" / "units")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finish(out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Decide and train until the answer is written; returns what was printed of each phase."""
    printed: list[str] = []
    capsys.readouterr()
    while (code := work(out, "--next")) == 0:
        printed.append(capsys.readouterr().out.strip())
        for number in reversed(units_in(out).numbers):  # in another order than one process has
            assert work(out, "--pack", str(number)) == 0
    assert code == 10
    return printed


def test_units_one_by_one_come_to_what_one_process_comes_to(
    out: Path, in_one_process: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish(out, capsys) == ["0-1", "2-3"]
    assert contents(out) == in_one_process
    assert not (out / "checkpoints").exists()
    assert work(out, "--next") == 10, "the answer stays written"
    assert work(out, "--pack", "0") == 0, "and a late worker has nothing to do"


def test_an_adaptive_plan_is_a_chain_of_units(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["digits", "--ranks", "1,2", "--seeds", "2", "--lr", "1e-3,3e-2", "--baseline-lr", "1e-2"]
    flags += ["--batch-size", "16", "--epochs", "1", "--plan", "auto", "--data", str(data), "--quiet"]
    assert main([*flags, "--out", str(tmp_path / "one")]) == 0
    assert main([*flags, "--out", str(tmp_path / "chain"), "--prepare"]) == 0
    phases = finish(tmp_path / "chain", capsys)
    assert len(phases) >= 2, "a search, and a comparison that depends on it"
    assert contents(tmp_path / "chain") == contents(tmp_path / "one")


def test_done_twice_or_decided_twice_changes_nothing(
    out: Path, in_one_process: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert work(out, "--pack", "1") == 0
    before = files(out)
    assert work(out, "--pack", "1") == 0
    assert files(out) == before
    capsys.readouterr()
    assert [work(out, "--next"), work(out, "--next")] == [0, 0]
    assert capsys.readouterr().out == "0\n0\n", "what is not done"
    assert units_in(out).numbers == [0, 1]
    finish(out, capsys)
    assert contents(out) == in_one_process


def test_a_second_process_on_a_unit_or_a_run_tries_again_later(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(units_in(out).unit(0).folder):
        assert work(out, "--pack", "0") == 75
    assert f"in use by another run of rankwise (process {os.getpid()}" in capsys.readouterr().err
    with locked(out):
        assert work(out, "--next") == 75
        assert work(out, "--pack", "0") == 0, "a unit is trained whoever decides meanwhile"


def test_a_stopped_unit_continues(
    out: Path, in_one_process: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = unit_training.LocalWorker

    def stopping(model: Any, problem: Any, wanted: Any) -> Any:
        steps = [0]

        def asked() -> bool:
            steps[0] += 1
            if steps[0] == 2:
                signal.raise_signal(signal.SIGTERM)
            return wanted()

        return worker(model, problem, asked)

    with monkeypatch.context() as patch:
        patch.setattr(unit_training, "LocalWorker", stopping)
        assert work(out, "--pack", "0") == 75
    unit = units_in(out).unit(0)
    assert not unit.done
    assert list(unit.folder.glob("checkpoint-*.json"))
    finish(out, capsys)
    assert contents(out) == in_one_process


@pytest.mark.parametrize("wild", ["nan", "raises"])
def test_an_error_of_one_adapter_ends_that_adapter(
    wild: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is no number for one learning rate, a metric that raises on its outputs."""
    accuracy = digits.accuracy

    def strict(outputs: Tensor, batch: Any) -> Tensor:
        if wild == "raises" and not outputs.abs().max() < 1e4:
            raise ValueError("not probable at all")
        return accuracy(outputs, batch)

    monkeypatch.setattr(digits, "accuracy", strict)
    flags = ["digits", "--ranks", "1,2", "--seeds", "1", "--lr", f"1e-3,{'1e30' if wild == 'nan' else '1e4'}"]
    flags += ["--baseline-lr", "1e-3", "--batch-size", "16", "--epochs", "2", "--plan", "grid", "--quiet"]
    flags += ["--data", str(data), "--out"]
    assert main([*flags, str(tmp_path / "one")]) == 3
    assert main([*flags, str(tmp_path / "units"), "--prepare", "--max-workers", "2"]) == 0
    finish(tmp_path / "units", capsys)
    for out in ("one", "units"):
        results = read_results(tmp_path / out)
        lost = "diverged" if wild == "nan" else "failed"
        assert {run.lr for run in results.runs if run.status == lost} == {1e30 if wild == "nan" else 1e4}
        assert {run.lr for run in results.runs if run.status == "finished"} == {1e-3}
        assert sum(note.startswith(f"{lost.capitalize()}, and left out: r1-lr") for note in results.notes) == 1


def test_a_damaged_result_is_trained_again(
    out: Path, in_one_process: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert work(out, "--pack", "0") == 0
    for path in units_in(out).unit(0).folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    finish(out, capsys)
    assert contents(out) == in_one_process


def test_one_process_takes_up_what_units_have_done(out: Path, in_one_process: dict[str, Any]) -> None:
    assert work(out, "--pack", "1") == 0
    assert work(out, "--next") == 0
    assert main(["digits", "--resume", str(out), "--quiet"]) == 0
    assert contents(out) == in_one_process


def test_mistakes(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no unit 7 in " in refused(capsys, "work", str(out), "--pack", "7")
    assert "takes one of --pack N and --next" in refused(capsys, "work", str(out))
    assert "takes one of --pack N and --next" in refused(capsys, "work", str(out), "--next", "--pack", "0")
    assert "holds no unfinished run" in refused(capsys, "work", str(tmp_path / "none"), "--next")
    new = ["digits", *FLAGS, "--out", str(tmp_path / "new")]
    assert "give it with --ray or --prepare" in refused(capsys, *new, "--max-workers", "2")
    assert "--max-workers is 0" in refused(capsys, *new, "--max-workers", "0", "--prepare")
    assert "goes with --ray" in refused(capsys, *new, "--gpus-per-worker", "1")
    assert "give one of them" in refused(capsys, *new, "--ray", "local", "--prepare")
    new[new.index("grid")] = "auto"
    assert "does not go with --prepare" in refused(capsys, *new, "--prepare", "--max-minutes", "5")


def test_a_unit_on_other_data_is_refused(
    out: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = out / "checkpoints" / "config.yaml"
    other = tmp_path / "other"
    shutil.copytree(data, other)
    labels = other / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\5")
    about = out / "checkpoints" / "about.json"
    assert about.exists()
    from rankwise.sweeps.storage.owned import ABOUT_FORMAT
    from rankwise.writing import read_checked, write_checked

    config.write_text(config.read_text().replace(str(data), str(other)))
    begun = read_checked(about, ABOUT_FORMAT)
    del begun["sha256"]["config.yaml"]
    write_checked(about, ABOUT_FORMAT, begun)
    assert "The data are others now" in refused(capsys, "work", str(out), "--pack", "0", "--quiet")


def test_packs_are_cut_for_idle_workers() -> None:
    packs = spread([list(range(5)), [9]], 4)
    assert sorted(map(len, packs)) == [1, 1, 2, 2]
    assert sorted(run for pack in packs for run in pack) == [0, 1, 2, 3, 4, 9]
    assert ranges([run for pack in packs for run in pack]) == "0-4,9"


def test_idle_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert idle_gpus(RunOptions(), {"device": "auto"}) == (
        "This machine has 4 GPUs, and one process uses one of them; --ray local uses them all."
    )
    assert idle_gpus(RunOptions(ray="local"), {"device": "auto"}) is None
    assert idle_gpus(RunOptions(), {"device": "cuda:1"}) is None


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_an_address_that_does_not_answer(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    flags = ["digits", *FLAGS, "--data", str(data), "--out", str(tmp_path / "out"), "--ray"]
    address = f"127.0.0.1:{closed_port()}"
    assert f"Nothing answers at the Ray address {address}" in refused(capsys, *flags, address)
    assert not (tmp_path / "out" / "checkpoints" / "plan.json").exists()
    assert 'The Ray address is "ray://head"' in refused(capsys, *flags, "ray://head")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Ray
def test_on_ray_it_comes_to_the_same(tmp_path: Path, data: Path, in_one_process: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    flags = ["digits", *FLAGS, "--data", str(data), "--out", str(tmp_path / "out"), "--ray", "local"]
    assert main([*flags, "--max-workers", "2", "--cpus-per-worker", "1"]) == 0
    assert contents(tmp_path / "out") == in_one_process
