"""Text from elsewhere stays text: on terminals, in figures, tables, pages and spreadsheets."""

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rankwise.adapter_files import read_adapter
from rankwise.cli import main
from rankwise.errors import AdapterFileError, CheckpointError, DataError, OutputError
from rankwise.report import read_results, write_report
from rankwise.results import plain, printable_results
from rankwise.shown import csv_cell, json_line, printable
from rankwise.tasks.text.data.labels import read_labels
from rankwise.writing import read_checked
from sample_results import sample_results

HOSTILE = [
    *("[/x]", "[bold red]", r"$\frac$", "$x_1$", "\x1b]0;owned\x07\x1b[2J", "\x9b2J", "\ud800", "\u202egnp.exe"),
    *("_hidden", "--><script>alert(1)</script>", "a|b`*_<", "=HYPERLINK(1)", "字😀", "x\ny", "%s {0}"),
]


@given(st.text())
def test_nothing_printable_acts(text: str) -> None:
    shown = printable(text)
    assert not set(shown) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    shown.encode()
    assert printable(shown) == shown
    assert json.loads(json_line({text: text})) == {text: text}
    json_line(text).encode()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *[(start + "1+cmd", f"'{start}1+cmd") for start in "=+-@\t\r"],
        (" =1", "' =1"),
        ("-1e-3", "-1e-3"),
        (-0.5, -0.5),
        (None, None),
        ("r8", "r8"),
    ],
)
def test_cells(value: object, shown: object) -> None:
    assert csv_cell(value) == shown


@pytest.mark.parametrize("texts", [HOSTILE[:8], HOSTILE[8:]])
def test_reports_of_hostile_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], texts: list[str]) -> None:
    results = sample_results([1, 2, 4, 8])
    drawn = results.configurations
    for c, text in zip(drawn, [*texts, *texts], strict=False):
        c.label += text
    for c, run, text in zip([*drawn, *drawn], results.runs, texts, strict=False):
        c.label, run.name = text + c.label, text
    results.metric.name = " ".join(texts)
    results.notes.extend(texts)
    (tmp_path / "results.json").write_text(json.dumps(plain(results)))
    assert main(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert not set(out + err) & set("\x1b\x07\x9b\ud800\u202e")
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    with (tmp_path / "results.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith("=")]


def test_a_results_file_reads_as_it_was_written(tmp_path: Path) -> None:
    results = sample_results()
    (tmp_path / "results.json").write_text(json.dumps(plain(results)))
    assert read_results(tmp_path) == results == printable_results(results)


@pytest.mark.slow  # report/test_collisions.py draws a figure of a hundred by default
def test_a_figure_of_many_configurations(tmp_path: Path) -> None:
    results = sample_results()
    first = next(c for c in results.configurations if c.method == "lora")
    for i in range(75):
        more = {"name": f"x{i}", "label": f"configuration {i}", "trainable_parameters": 1000 + 194 * i}
        results.configurations.append(replace(first, **more, mean=0.9 + 0.0008 * i, runs=[]))
    write_report(results, tmp_path)  # minutes, before
    assert (tmp_path / "accuracy_vs_parameters.png").exists()


def test_pipes_are_refused_not_waited_for(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "results.json", "plan.json", "labels.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(AdapterFileError, match="no regular file"):
        read_adapter(tmp_path)
    with pytest.raises(OutputError, match="no regular file"):
        read_results(tmp_path)
    with pytest.raises(CheckpointError, match="no regular file"):
        read_checked(tmp_path / "plan.json", "x-1")
    with pytest.raises(DataError, match="no regular file"):
        read_labels(tmp_path)
