"""Where results go when nothing is said: a new folder each time, and a link to the newest."""

from datetime import date
from pathlib import Path

import pytest

from rankwise.cli import main
from rankwise.cli.places import name_of, new_run, pointed_to
from rankwise.sweeps.run import run as sweeping
from test_cli import QUICK, folder_of_digits


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("banking77/train.csv", "banking77"),
        ("Kunden Briefe.jsonl", "kunden-briefe"),
        ("owner/Data.Set", "data.set"),
        ("../../etc/..", "sweep"),
        ("x" * 300 + ".csv", "x" * 40),
        (None, "sweep"),
    ],
)
def test_names_of_runs(data: str | None, name: str) -> None:
    assert name_of("sweep", data) == name


def test_each_run_has_a_folder_and_last_points_to_the_newest() -> None:
    made: list[Path] = []
    for _ in range(3):
        with new_run("x") as directory:
            (directory / "results.json").touch()
            made.append(directory)
    assert [path.name for path in made] == [f"{date.today().isoformat()}-x-{i}" for i in (1, 2, 3)]
    assert pointed_to(Path("runs", "last")) == made[2]


def test_two_at_a_time() -> None:
    with new_run("x") as one, new_run("x") as other:
        assert one != other


def test_a_run_that_writes_nothing_leaves_nothing() -> None:
    with new_run("x"):
        pass
    assert not Path("runs").exists()
    with new_run("x") as directory:
        (directory / "a").touch()
    with new_run("x"):
        assert pointed_to(Path("runs/last")).name.endswith("-2")
    assert pointed_to(Path("runs/last")) == directory


def test_a_folder_called_last_stays() -> None:
    Path("runs/last").mkdir(parents=True)
    Path("runs/last/mine").touch()
    with new_run("x") as directory:
        (directory / "a").touch()
    assert Path("runs/last/mine").exists()


def test_an_interrupted_run_blocks_nothing_but_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = folder_of_digits(tmp_path / "data")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Scheduler, "rounds", interrupted)
        assert main(["digits", *QUICK, "--data", str(data), "--quiet"]) == 130
    first = pointed_to(Path("runs/last"))
    assert f"rankwise digits --resume {first}" in capsys.readouterr().err
    assert main(["digits", *QUICK, "--data", str(data), "--quiet"]) == 0
    assert (Path("runs/last") / "results.json").exists()
    assert pointed_to(Path("runs/last")) != first
    assert main(["digits", "--resume", str(first), "--quiet"]) == 0
    assert (first / "results.json").exists()
    assert sorted(path.name[-2:] for path in Path("runs").iterdir()) == ["-1", "-2", "st"]
