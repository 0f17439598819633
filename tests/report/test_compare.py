"""Runs side by side: means as they stand, and differences that are paired by seed and example."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rankwise.cli import main
from rankwise.errors import ConfigError
from rankwise.report.compare import compare_runs, draw_comparison
from rankwise.results import Results, plain, read_results
from rankwise.results.origin import MetricInfo
from rankwise.sweeps.choose.statistics import interval
from sample_results import sample_results

Change = Callable[[Results], None]
N = 60


def write_run(directory: Path, seed: int, change: Change = lambda results: None) -> dict[str, np.ndarray]:
    """A run directory with random right and wrong answers; returns them by run."""
    results = sample_results((1, 4), seeds=2)
    change(results)
    g = np.random.default_rng(seed)
    rows = {run.name: g.integers(0, 2, N).astype(np.float32) for run in results.runs}
    directory.mkdir()
    (directory / "results.json").write_text(json.dumps(plain(results)))
    np.savez(directory / "predictions.npz", **{f"test/{name}": values for name, values in rows.items()})  # pyright: ignore[reportArgumentType]
    return rows


def test_differences_are_paired(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, seed) for seed, name in enumerate("ab"))
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert found.names == ("a", "b")
    assert found.notes == ()
    results = read_results(tmp_path / "a")
    for c in results.configurations:
        ours, theirs = found.rows[c.label]
        assert ours is not None
        assert theirs is not None
        assert (ours.mean, ours.is_answer, ours.difference) == (c.mean, c.is_answer, None)
        values = np.stack([second[name] - first[name] for name in c.runs]).astype(np.float64)
        assert theirs.difference == pytest.approx(values.mean())
        assert theirs.difference_interval == pytest.approx(interval(values))


def test_other_test_data_and_other_configurations(tmp_path: Path) -> None:
    def other(results: Results) -> None:
        results.data.test.sha256 = "0" * 64
        results.configurations = [c for c in results.configurations if c.label != "r = 4"]
        results.answer = None

    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, other)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert found.rows["r = 4"][1] is None
    assert all(cell is None or cell.difference is None for cells in found.rows.values() for cell in cells)
    assert "The test data of b is not that of a" in found.notes[0]


def test_what_can_not_be_compared(tmp_path: Path) -> None:
    def by_loss(results: Results) -> None:
        results.metric = MetricInfo(name="loss", higher_is_better=False)

    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, by_loss)
    with pytest.raises(ConfigError, match="1 run is given; two or more"):
        compare_runs([tmp_path / "a"])
    with pytest.raises(ConfigError, match=r"different metrics \(accuracy, loss\)"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        write_run(tmp_path / name, seed)
    runs = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *runs, "--out", str(tmp_path / "c.png")]) == 0
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert "r = 4" in shown
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", *runs, "--out", str(tmp_path / "c")]) == 2
    assert re.fullmatch(
        r"rankwise: \S+/c ends in none of .png, .svg, .pdf; name such a file\.", capsys.readouterr().err.strip()
    )
    assert main(["compare", *runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["a", "b"]
    assert main(["compare", runs[0], str(tmp_path / "nothing")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_without_rows_is_drawn(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_run(tmp_path / name, seed)
    (tmp_path / "b" / "predictions.npz").unlink()
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert all(cells[1] is not None and cells[1].difference is None for cells in found.rows.values())
    assert draw_comparison(found, tmp_path / "c.png").is_file()
