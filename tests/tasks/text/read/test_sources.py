"""Files of examples: each format gives the same records, and every damage is one line that names the place."""

import gzip
import json
from pathlib import Path

import pytest

from rankwise.errors import DataError
from rankwise.tasks.text.data.loading import TextData, load_examples
from rankwise.tasks.text.read.sources import read_records

ROWS = [{"text": "one, two", "label": "007"}, {"text": 'said "NA"\nand left', "label": "NA"}]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_csv(delimiter: str) -> str:
    quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in ROWS]
    return "\n".join(delimiter.join(fields) for fields in [["text", "label"], *quoted])


CONTENTS = {
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "a.ndjson": "\n\n".join(map(json.dumps, ROWS)) + "\n\n",
    "a.json": json.dumps(ROWS),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "a.csv": as_csv(","),
    "bom.csv": "\ufeff" + as_csv(","),
    "a.tsv": as_csv("\t"),
    "a.jsonl.gz": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_values(tmp_path, name):
    records = read_records(write(tmp_path / name, CONTENTS[name]))
    assert [row.values for row in records.rows] == ROWS
    assert records.columns == ("text", "label")


def test_parquet_gives_the_same_values(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    records = read_records(tmp_path / "a.parquet")
    assert [row.values for row in records.rows] == ROWS


def test_numbers_of_a_class_label_become_names_in_their_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ["zebra", "ape"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    records = read_records(tmp_path / "a.parquet")
    assert [row.values["label"] for row in records.rows] == ["ape", "zebra"]
    assert records.label_names == {"label": ("zebra", "ape")}


def test_a_number_of_a_line_counts_lines_not_rows(tmp_path):
    records = read_records(write(tmp_path / "a.csv", 'text\n"one\ntwo"\nthree\n'))
    assert [row.line for row in records.rows] == [2, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no examples"),
        ("a.csv", "", "holds no examples"),
        ("a.csv", "text,label\n", "holds no examples"),
        ("a.json", "[]", "holds no examples"),
        ("a.json", "3", "holds a JSON int; a list of objects"),
        (
            "a.jsonl",
            '{"a": 1}\n{"a": \n[1]',
            r"2 of 3 lines can't be read: line 2 \(no JSON at column 6: Expecting value\)",
        ),
        ("a.jsonl", '{"a": 1}\n[1]', r"line 2 \(a JSON list, not an object\)"),
        ("a.json", '[{"a": 1}, 2]', r"line 2 \(a JSON int, not an object\)"),
        ("a.csv", "a,b\n1,2\n1\n1,2,3\n", r"line 3 \(1 fields where the first line has 2\); line 4 \(3 fields"),
        ("a.csv", "a,a\n1,2\n", r"names a column twice \(a, a\)"),
        ("a.csv", 'a,b\n1,2\n1,"open\n', r"line 3 \(unexpected end of data\)"),
        ("a.csv", b"a,b\n1,2\ncaf\xe9,2\n", r"line 3 \(not UTF-8\)"),
        ("a.jsonl", b'{"a": "caf\xe9"}\n{"a": 1}', r"line 1 \(not UTF-8\)"),
        ("a.jsonl", "\n".join(["x"] * 9), r"9 of 9 lines.*; and 4 more\. Mend them, or give --skip-bad-lines"),
        ("a.txt", "x", r'ends in ".txt"; what is read ends in \.jsonl'),
        ("a.parquet", "x", "can't be read as Parquet"),
    ],
)
def test_what_can_not_be_read_is_one_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_records(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_bad_lines_are_left_out_on_request_and_said(tmp_path):
    records = read_records(write(tmp_path / "a.jsonl", '{"a": 1}\nx\n{"a": 2}\n'), skip_bad_lines=True)
    assert [row.line for row in records.rows] == [1, 3]
    assert "1 of 3 lines" in records.notes[0]
    assert "left out" in records.notes[0]


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*nowhere\.jsonl"):
        read_records(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read_records(tmp_path)


def test_a_damaged_gzip_file(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n")[:-6])
    with pytest.raises(DataError, match="can't be read"):
        read_records(path)


def test_a_long_field_is_read(tmp_path):
    long = "x" * 200_000
    assert read_records(write(tmp_path / "a.csv", f"text\n{long}\n")).rows[0].values == {"text": long}


def test_a_name_that_is_neither_file_nor_data_set():
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="nobody/nothing") as caught:
        read_records("nobody/nothing")
    assert "\n" not in str(caught.value)


class Hub:
    """In place of `datasets.load_dataset`: it remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, name, configuration, *, split):
        from datasets import ClassLabel, Dataset, Features, Value

        self.asked.append((name, configuration, split))
        features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
        rows = {"text": [f"{split} {n}" for n in range(8)], "label": [n % 2 for n in range(8)]}
        return Dataset.from_dict(rows, features=features)


@pytest.fixture
def hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


def test_a_data_set_of_the_hub_by_name_configuration_and_split(hub):
    records = read_records("owner/name:en", split="test")
    assert records.rows[0].values == {"text": "test 0", "label": "no"}
    assert records.label_names == {"label": ("no", "yes")}
    read_records("owner/name", split="train")
    assert hub.asked == [("owner/name", "en", "test"), ("owner/name", None, "train")]


def test_splits_of_the_hub(hub):
    """A split's own word takes it from the training data's place."""
    where = TextData(data="owner/name:en", validation="validation", test="owner/other")
    splits, names = load_examples(where, "classify")
    assert hub.asked == [
        ("owner/name", "en", "train"),
        ("owner/name", "en", "validation"),
        ("owner/other", None, "test"),
    ]
    assert splits.validation[0].text.startswith("validation ")
    assert names == {"label": ("no", "yes")}


def test_a_data_set_that_is_not_there_is_one_line(hub, monkeypatch):
    import datasets

    def missing(*given, **more):
        raise datasets.exceptions.DatasetNotFoundError("404")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(DataError, match='There is no file "owner/none" and no data set of that name on the hub'):
        read_records("owner/none", split="train")
