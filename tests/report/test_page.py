"""The page stands alone, escapes what it is given, and shows what was chosen and how it was run."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rankwise.errors import OutputError
from rankwise.report import read_results, write_report
from rankwise.report.page import all_runs, page, rate_table, write_page
from rankwise.results.origin import SearchedRate
from rankwise.results.outcomes import MeanInterval
from sample_results import LRS, change, sample_results

VOID = {"meta", "br", "link", "img"}


class Reader(HTMLParser):
    """Collects tags, ids and what they load; fails on tags that don't close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_one_file_that_loads_nothing() -> None:
    text = page(sample_results([1, 4], published=True))
    reader = Reader(text)
    assert not reader.open
    assert not reader.tags & {"script", "link", "img", "iframe", "object"}
    assert reader.references, "the figures refer to their own parts"
    assert all(reference.startswith("#") and reference[1:] in reader.ids for reference in reader.references)
    assert all(found in reader.ids for found in re.findall(r"url\(#([^)]+)\)", text))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(reader.ids) == len(set(reader.ids))


def test_the_answer_is_on_top_in_words() -> None:
    words = Reader(page(sample_results([4, 8]))).words
    assert words.index("4,180 parameters (7.6% of full fine-tuning)") < words.index("The table")


def test_what_is_shown() -> None:
    words = Reader(page(sample_results([4, 8], edge=["r8"]))).words
    for expected in (
        "The learning rates",
        "accuracy on 0-4",
        "rankwise digits --seeds 5",
        "12 min 34 s",
        "torch 2.13.0",
        "3,500 examples, SHA-256 abab",
        "r8-lr0.001-s4",
        "0.001 †",
        "adapters/r4-lr0.001-s0",
    ):
        assert expected in words
    assert "Also measured" not in page(sample_results([4], forgetting=False))


def test_names_are_escaped() -> None:
    evil = '<script>alert("x")</script>'
    results = sample_results([4], published=True)
    change(results, task=evil, command=evil, notes=[evil], device=evil, versions={evil: evil})
    results.configurations[0].label = results.runs[0].reason = evil
    assert results.published is not None
    assert results.relative_to is not None
    results.published.source = evil
    results.metric.name = 'accuracy"><script>'
    results.relative_to.label = results.base.name = evil
    results.configurations[0].other_metrics = {evil: MeanInterval(mean=0.5, interval=None)}
    reader = Reader(page(results))
    assert "script" not in reader.tags
    assert 'alert("x")' in reader.words


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    assert write_page(sample_results([4, 8]), tmp_path).read_text("utf-8") == page(sample_results([4, 8]))


@pytest.mark.parametrize("given", [{"answer_r": None, "complete": False}, {"ranks": [4], "baselines": [], "seeds": 1}])
def test_pages_of_unusual_sweeps(given: dict) -> None:
    assert not Reader(page(sample_results(**{"ranks": [1, 4], **given}))).open


def test_the_page_of_a_training_says_nothing_of_a_sweep() -> None:
    results = sample_results([4], baselines=[], seeds=1, base_metric=None)
    results.runs = [run for run in results.runs if run.name in results.configurations[0].runs]
    change(results.grid, baseline_lrs=[])
    words = Reader(page(results)).words
    assert "One training" in words
    assert "1 run" in words
    for word in ("The learning rates", "grid:", "1 runs"):
        assert word not in words
    swept = sample_results([4], seeds=1)
    swept.grid.search = [SearchedRate(configuration="r4", lr=1e-3, validation_metric=0.9534, status="finished")]
    assert "r4 at 0.001: 0.953" in Reader(page(swept)).words


def test_a_page_of_nothing() -> None:
    results = sample_results(answer_r=None, base_metric=None, complete=False)
    change(results, configurations=[], runs=[], relative_to=None)
    words = Reader(page(results)).words
    assert "No answer yet" in words
    assert "The table" not in words


def test_learning_rates() -> None:
    results = sample_results([4], seeds=2)
    rates, rows = rate_table(results)
    assert rates == ["1e-05", "3e-05", "0.0001", "0.0003", "0.001"]
    assert [row.label for row in rows] == ["r = 4", "full fine-tuning"]
    values = [run.validation_metric for run in results.runs if run.name.startswith("r4-lr0.001-")]
    assert rows[0].cells == ["", "", rows[0].cells[2], rows[0].cells[3], f"{sum(values) / 2:.3f}"]
    assert rows[0].chosen == 4
    assert rows[1].chosen == 2


def test_diverged_runs_are_counted() -> None:
    results = sample_results([4], seeds=2)
    for run in results.runs[:2]:
        change(run, status="diverged", validation_metric=None)
    results.runs[2].status = "diverged"
    results.runs[2].validation_metric = None
    _, rows = rate_table(results)
    assert rows[0].cells[2] == "2 diverged"
    assert rows[0].cells[3] == f"{results.runs[3].validation_metric:.3f}, 1 diverged"


def test_whose_run_it_is() -> None:
    results = sample_results([4], baselines=[("a", 0.9), ("b", 0.95)], seeds=1)
    assert {c.name: len(list(all_runs(results, c))) for c in results.configurations} == {
        "r4": len(LRS),
        "full-0": len(LRS),
        "full": len(LRS),
    }
    for run in results.runs:
        run.configuration = None
    assert {c.name: len(list(all_runs(results, c))) for c in results.configurations} == {
        "r4": len(LRS),
        "full-0": 1,
        "full": 1,
    }, "where method and rank do not tell, only what is listed"


def test_write_report_can_be_run_again(tmp_path: Path) -> None:
    results = sample_results([4, 8], seeds=1)
    expected = ["accuracy_vs_parameters.png", "accuracy_vs_parameters.svg", "relative.png", "relative.svg"]
    expected += ["report.html", "results.csv", "table.md"]
    first = {path: path.read_bytes() for path in write_report(results, tmp_path / "run")}
    assert sorted(path.name for path in first) == expected
    second = {path: path.read_bytes() for path in write_report(results, tmp_path / "run")}
    assert first == second
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == expected


def test_write_report_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        write_report(sample_results([4]), tmp_path / "file")
    with pytest.raises(OutputError, match="can't be read"):
        read_results(tmp_path / "none")
