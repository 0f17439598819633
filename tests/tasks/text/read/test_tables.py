"""Tables as spreadsheets and other programs write them."""

from pathlib import Path

import pytest

from rankwise.errors import DataError
from rankwise.tasks.text.read.sources import read_records

ROWS = [{"text": "one, two; three", "label": "a"}, {"text": 'four "five"', "label": "b"}]


def table(delimiter: str) -> str:
    lines = [["text", "label"], *(['"' + v.replace('"', '""') + '"' for v in row.values()] for row in ROWS)]
    return "\r\n".join(delimiter.join(line) for line in lines)


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.csv", "\ufeff" + table(";"), "it is read with semicolons between its columns"),
        ("a.csv", table("\t"), "it is read with tabs between its columns"),
        ("a.tsv", table(","), "it is read with commas between its columns"),
        ("a.csv", "sep=;\r\n" + table(";"), "its first line names the delimiter, semicolons"),
        ("a.csv", table(", "), "spaces at the beginning of its fields are left out"),
    ],
)
def test_other_delimiters(tmp_path: Path, name: str, content: str, note: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    records = read_records(tmp_path / name)
    assert [row.values for row in records.rows] == ROWS
    assert records.rows[0].line == 2 + content.startswith("sep")
    assert any(note in said for said in records.notes)


def test_a_single_column_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text; more\none\ntwo; three; four\n")
    assert read_records(tmp_path / "a.csv").columns == ("text; more",)


@pytest.mark.parametrize(("name", "form"), [("a.jsonl", "{}"), ("a.json", "[{}]")])
def test_a_key_that_stands_twice(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / name).write_text(form.replace("{}", '{"text": "x", "label": "a", "label": "b"}'))
    with pytest.raises(DataError, match='"label" stands twice in one object'):
        read_records(tmp_path / name)


def test_a_conversation_alone_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    assert read_records(tmp_path / "a.json").columns == ("messages",)


def test_parquet_has_every_key_in_every_row(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    calls = [[{"function": {"arguments": {"city": "Paris"}}}], [{"function": {"arguments": {"date": "today"}}}]]
    datasets.Dataset.from_dict({"calls": calls, "text": [None, "x"]}).to_parquet(str(tmp_path / "a.parquet"))
    records = read_records(tmp_path / "a.parquet")
    assert [row.values["calls"] for row in records.rows] == calls
    assert records.rows[0].values["text"] is None
    assert any("2 nulls inside of lists and objects" in note for note in records.notes)


def test_lists_of_classes_have_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"label": datasets.Sequence(datasets.ClassLabel(names=["joy", "anger", "calm"])), "n": datasets.Value("int64")}
    )
    data = datasets.Dataset.from_dict({"label": [[2, 0], []], "n": [1, 2]}, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    records = read_records(tmp_path / "a.parquet")
    assert [row.values["label"] for row in records.rows] == [["calm", "joy"], []]
    assert records.label_names == {"label": ("joy", "anger", "calm")}
