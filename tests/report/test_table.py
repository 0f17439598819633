"""The table's numbers, in every form."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from rankwise.errors import OutputError
from rankwise.report.table import (
    RUN_COLUMNS,
    legend,
    markdown_table,
    table_rows,
    terminal_notes,
    terminal_table,
    write_csv,
)
from rankwise.results import Results
from sample_results import change, sample_results

BASELINES = [("the notebook's baseline", 0.984), ("its budget on 5-9", 0.931), ("LoRA's budget on 5-9", 0.984)]


def cells(markdown: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell, without bold."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row for row in rows}


def test_numbers_of_a_row() -> None:
    rows = cells(markdown_table(sample_results()))
    heading, r8 = rows["model"], dict(zip(rows["model"], rows["r = 8"], strict=True))
    assert heading[:3] == ["model", "trainable parameters", "test accuracy"]
    assert r8["trainable parameters"] == "8,360"
    assert r8["test accuracy"] == "0.972"
    assert r8["95% interval"] == "0.969 to 0.975"
    assert r8["% of parameters"] == "15.3"
    assert r8["% of accuracy"] == "98.8"
    assert r8["learning rate"] == "0.001"
    assert r8["front"] == "●"


def test_the_answer_is_bold_and_named_once() -> None:
    bold = [line for line in markdown_table(sample_results()).splitlines() if line.startswith("| **")]
    assert len(bold) == 1
    assert bold[0].startswith("| **r = 4, the answer** | **4,180** |")
    assert "the answer" not in markdown_table(sample_results(answer_r=None))


def test_every_row_has_every_column() -> None:
    for given in (
        {},
        {"published": True, "baselines": BASELINES},
        {"ranks": [4], "baselines": [], "forgetting": False},
    ):
        rows = table_rows(sample_results(**given))
        assert len({tuple(row.cells) for row in rows}) == 1
        assert all(any(row.cells[name] for row in rows) for name in rows[0].cells), "no empty column"


def test_published_values_stand_beside_and_alone() -> None:
    results = sample_results([1, 4], baselines=BASELINES, published=True)
    rows = {row.label: row.cells for row in table_rows(results)}
    assert rows["r = 1"]["published accuracy"] == "0.875"
    assert rows["the notebook's baseline"]["published accuracy"] == "0.984"
    assert rows["LoRA's budget on 5-9"]["published accuracy"] == "", "three share method and rank; one is named"
    assert rows["r = 64"]["published accuracy"] == "0.980", "not run here: its own row"
    assert "0.984 is not that of 5-9" in markdown_table(results)


def test_legend() -> None:
    results = sample_results(edge=["r8"])
    results.notes = ["2 runs diverged"]
    text = markdown_table(results)
    assert "- 100% is full fine-tuning: 54,725 trainable parameters, test accuracy 0.984." in text
    assert "0.001 †" in text
    assert "† is the best learning rate tried, at the edge" in text
    assert "- 2 runs diverged." in text
    assert "†" not in markdown_table(sample_results())


def test_one_that_stands_alone_is_relative_to_nothing() -> None:
    alone, published = sample_results(ranks=[4], baselines=[]), sample_results(ranks=[4], baselines=[], published=True)
    assert list(table_rows(alone)[-1].cells) == [
        "trainable parameters",
        "test accuracy",
        "95% interval",
        "seeds",
        "learning rate",
    ]
    assert not any(line.startswith("100% is") for line in legend(alone))
    assert "% of parameters" in table_rows(published)[-1].cells, "it is relative to the published baseline"


def test_a_configuration_without_test_metric() -> None:
    results = sample_results()
    change(results.configurations[0], mean=None, interval=None, relative_metric=None)
    assert cells(markdown_table(results))["r = 1"][2] == "–"  # noqa: RUF001


def test_labels_do_not_break_the_table() -> None:
    results = sample_results()
    results.configurations[0].label = "a | b\n<b>*"
    assert r"| a \| b \<b>\* |" in markdown_table(results)


def test_no_configurations() -> None:
    results = sample_results(answer_r=None, base_metric=None)
    change(results, configurations=[], relative_to=None)
    assert markdown_table(results) == "\n"
    assert terminal_table(results).row_count == 0


def terminal_lines(results: Results, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_table(results, width), *terminal_notes(results, width), sep="\n")
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize("label", ["full fine-tuning", "r8 on q_proj and v_proj", "modest classification-head alone"])
@pytest.mark.parametrize("width", [50, 60, 70, 80, 100, 140])
def test_long_labels_break_between_words(label: str, width: int) -> None:
    results = sample_results(edge=["r8"])
    results.configurations[-1].label = label
    lines = terminal_lines(results, width)
    words = [word for line in lines for word in line.split()]
    assert all(word in words for word in label.split()), "a word is never cut"
    assert "0.984" in words, "the metric is always there"


def test_a_wide_terminal_shows_intervals() -> None:
    results = sample_results(edge=["r8"])
    assert not any("0.868 to 0.874" in line for line in terminal_lines(results, 80))
    assert any("0.868 to 0.874" in line for line in terminal_lines(results, 110))
    assert any("Pareto" in line for line in terminal_lines(results, 140))
    assert not any("Pareto" in line for line in terminal_lines(results, 80)), "its column isn't there"


def test_terminal_table_fits_80_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    results = sample_results(edge=["r8"])
    results.configurations[0].label = "[bold] 1"
    console.print(terminal_table(results), *terminal_notes(results), sep="\n")
    text = console.file.getvalue()
    assert "r = 4 ◀" in text
    assert "[bold] 1" in text, "labels are no markup"
    assert "0.001 †" in text
    assert "…" not in text


def test_csv_has_a_line_a_run(tmp_path: Path) -> None:
    results = sample_results(seeds=2)
    path = tmp_path / "results.csv"
    write_csv(results, path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert tuple(rows[0]) == (*RUN_COLUMNS, "accuracy_on_0_4")
    assert [row["name"] for row in rows] == [run.name for run in results.runs]
    assert float(rows[0]["validation_metric"]) == results.runs[0].validation_metric, "numbers are in full"
    assert rows[0]["metric"] == rows[0]["accuracy_on_0_4"] == ""
    assert rows[-1]["r"] == ""
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"results\.csv can't be written"):
        write_csv(sample_results(), tmp_path / "file" / "results.csv")
