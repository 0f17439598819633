"""Nothing that is not Rankwise's is replaced or removed in a run directory."""

import json
from pathlib import Path

import pytest

from rankwise.errors import OutputError
from rankwise.sweeps.storage.directory import begin_run, check_directory, check_foreign, end_run, held
from rankwise.sweeps.storage.owned import foreign, why_no_adapter

RESULTS = {"format": "rankwise-results-1", "runs": [{"adapter": "adapters/r1-s0"}, {"adapter": None}]}


def fill(directory: Path, *files: str) -> Path:
    for name in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    return directory


def unfinished(directory: Path) -> Path:
    folder = begin_run(directory, "digits: {}\n", {"command": "rankwise"}, None)
    (folder / "plan.json").write_text(json.dumps({"format": "rankwise-plan-3"}))
    return directory


def finished(directory: Path) -> Path:
    fill(directory, "adapters/r1-s0/adapter_config.json", "predictions.npz", "base/model.safetensors")
    (directory / "results.json").write_text(json.dumps(RESULTS))
    return directory


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/epoch10.pt",
        "checkpoints/plan.json",
        "checkpoints/checkpoint-000001.json",
        "checkpoints/last/model.pt",
        "adapters/mine/adapter_config.json",
        "base/weights.bin",
        "config.yaml",
        "results.json",
        ".writing.notes",
    ],
)
def test_other_files_are_refused_with_and_without_overwrite(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no file of a run of rankwise"):
            check_directory(tmp_path, overwrite)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("text", ["{}", '{"format": "another-results-1"}', "[1]", '{"format": "rankw', "\xff"])
def test_results_of_another_program(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(OutputError, match=r"holds results\.json, which is no file of a run"):
        check_directory(tmp_path, overwrite=True)


@pytest.mark.parametrize("name", ["adapters/mine/model.bin", "base/other.bin", "checkpoints/epoch1.pt"])
def test_other_files_inside_folders_of_results_are_refused(tmp_path: Path, name: str) -> None:
    fill(finished(tmp_path), name)
    with pytest.raises(OutputError, match=str(Path(name).parts[1]) if "check" not in name else "checkpoints"):
        check_directory(tmp_path, overwrite=True)


def test_other_files_at_the_side_of_results_stay(tmp_path: Path) -> None:
    fill(finished(tmp_path), "notes.txt", "analysis/plot.py")
    check_directory(tmp_path, overwrite=True)


def test_a_results_file_cannot_claim_what_lies_elsewhere(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    fill(tmp_path, "mine/a.txt")
    (tmp_path / "run" / "results.json").write_text(
        json.dumps({**RESULTS, "runs": [{"adapter": "adapters/../../mine"}, {"adapter": 3}, "x"]})
    )
    assert [path.name for path in foreign(tmp_path / "run")] == ["r1-s0"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, "mine/about.json")
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="holds checkpoints"):
        check_directory(run, overwrite=True)
    (run / "checkpoints").unlink()
    (run / "checkpoints").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="holds checkpoints"):
        check_directory(run, overwrite=True)
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="dead is a link to nothing"):
        check_directory(tmp_path / "dead", overwrite=True)


def test_an_unfinished_run_is_removed_and_nothing_else(tmp_path: Path) -> None:
    unfinished(tmp_path)
    fill(tmp_path, "checkpoints/000001-pack-0.safetensors", "checkpoints/stage-1/checkpoint-000002.json", "notes.txt")
    fill(tmp_path, "checkpoints/.000002-pack-0.safetensors.77.tmp")
    assert not list(foreign(tmp_path))
    fill(tmp_path, "checkpoints/stage-1/mine.txt")
    end_run(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"checkpoints/stage-1/mine.txt", "notes.txt"}
    with pytest.raises(OutputError, match="holds checkpoints"):
        check_directory(tmp_path, overwrite=True)


def test_a_run_that_was_killed_as_it_began_blocks_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "checkpoints/.about.json.77.tmp")
    check_directory(tmp_path, overwrite=False)
    (tmp_path / "checkpoints" / ".about.json.77.tmp").unlink()
    check_directory(tmp_path, overwrite=False)
    begin_run(tmp_path, "", {}, None)
    check_directory(tmp_path, overwrite=False)


def test_what_comes_next_to_an_unfinished_run_is_not_replaced(tmp_path: Path) -> None:
    fill(unfinished(tmp_path), "notes.txt")
    check_foreign(tmp_path)
    fill(tmp_path, "adapters/mine.bin")
    with pytest.raises(OutputError, match="holds adapters"), held(tmp_path, overwrite=False, resume=True):
        pass


def test_what_killed_runs_have_left_is_cleared(tmp_path: Path) -> None:
    fill(finished(tmp_path), ".writing.77/adapters/a.bin", ".report.html.77.tmp", ".mine.77.tmp")
    with held(tmp_path, overwrite=True, resume=False):
        names = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
        assert names == {".mine.77.tmp", ".rankwise.lock"}


def test_why_there_is_no_adapter(tmp_path: Path) -> None:
    run = finished(tmp_path)
    adapter = run / "adapters" / "r1-s0"
    assert why_no_adapter(adapter) is None
    assert why_no_adapter(tmp_path / "elsewhere" / "best") is None
    assert (
        why_no_adapter(run)
        == f"{run} is a run's directory and no adapter; give one of its adapters, such as {adapter}."
    )
    answer = {"verdict": "undecided", "adapter": "adapters/r1-s0", "next": "rankwise sweep --more-seeds 2"}
    for content, words in (
        (answer, "its answer is undecided; rankwise sweep --more-seeds 2 may decide it; an adapter of your own choice"),
        ({"verdict": "shown", "adapter": None}, "its answer is no adapter; an adapter"),
        (None, "it has no answer; an adapter"),
    ):
        (run / "results.json").write_text(json.dumps({**RESULTS, "answer": content}))
        found = why_no_adapter(run / "best")
        assert found is not None
        assert words in found
        assert found.endswith(f"is given by its folder, such as {adapter}.")
    begun = unfinished(tmp_path / "begun")
    assert f"holds an unfinished run, which has recommended no adapter yet; finish it with --resume {begun}" in str(
        why_no_adapter(begun / "best")
    )
