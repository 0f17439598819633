"""`rankwise predict` and `rankwise.predict`: labels and probabilities are the adapter's own, wherever the texts are."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
import rankwise
from rankwise.adapter_files import load_adapter
from rankwise.cli import main
from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.data.labels import read_labels
from rankwise.tasks.text.model.models import load_text_model
from rankwise.tasks.text.use.prediction import Prediction
from text_models import make_model, make_tokenizer

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")
LABELS = {"one": ["a", "b", "c"], "several": [["a", "b"], [], ["b"]], "number": [0.5, 1.5, -2.0]}
TEXTS = ["The cat sat", "one", "two three one two"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter for each kind of label; a second one for one label a text."""
    root = tmp_path_factory.mktemp("predicting")
    make_model("bert", layers=1).save_pretrained(root / "bert")
    make_tokenizer().save_pretrained(root / "bert")
    for name, kind, rank in (
        ("one", "one", 2),
        ("other", "one", 3),
        ("several", "several", 2),
        ("number", "number", 2),
    ):
        rows = [{"text": f"{WORDS[n % 7]} {WORDS[n % 5]} {n}", "label": LABELS[kind][n % 3]} for n in range(30)]
        data = root / f"{kind}.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
        flags = ["--model", str(root / "bert"), "--task", "classify", "--data", str(data), "--rank", str(rank)]
        quick = ["--epochs", "2", "--batch-size", "8", "--lr", "1e-2", "--quiet"]
        assert main(["train", *flags, *quick, "--out", str(root / "runs" / name)]) == 0
        (folder,) = (root / "runs" / name / "adapters").iterdir()
        folder.rename(root / name)
    return root


def expected(place: Path, name: str) -> torch.Tensor:
    """The logits of each text by itself, from the model alone."""
    labels = read_labels(place / name)
    loaded = load_text_model(place / "bert", "classify", labels)
    load_adapter(loaded.model, place / name)
    with torch.no_grad():
        calls = [loaded.call(loaded.model, dict(loaded.tokenizer([text], return_tensors="pt"))) for text in TEXTS]
    return torch.cat(calls)


def test_one_label(place: Path) -> None:
    found = rankwise.predict(place / "one", TEXTS)
    probabilities = expected(place, "one").softmax(-1)
    for said, row in zip(found, probabilities, strict=True):
        assert list(said.probabilities) == ["a", "b", "c"]
        assert list(said.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert said.label == "abc"[int(row.argmax())]
        assert said.probability == max(said.probabilities.values())


def test_several_labels_and_numbers(place: Path) -> None:
    several = rankwise.predict(place / "several", TEXTS)
    for said, row in zip(several, expected(place, "several").sigmoid(), strict=True):
        assert list(said.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert said.label == tuple(name for name, p in zip("ab", row.tolist(), strict=True) if p > 0.5)
    numbers = rankwise.predict(place / "number", TEXTS)
    assert [said.label for said in numbers] == pytest.approx(expected(place, "number").squeeze(-1).tolist(), abs=1e-5)
    assert all((said.probability, said.probabilities) == (None, {}) for said in numbers)


def test_adapters_side_by_side_are_each_alone(place: Path) -> None:
    both = rankwise.predict([place / "one", place / "other"], TEXTS)
    assert list(both) == ["one", "other"]
    for name, found in both.items():
        alone = rankwise.predict(place / name, TEXTS)
        for said, own in zip(found, alone, strict=True):
            assert dict(said.probabilities) == pytest.approx(dict(own.probabilities), abs=1e-6)
    assert [p.probability for p in both["one"]] != pytest.approx([p.probability for p in both["other"]], abs=1e-4)


def test_a_text_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = rankwise.predict(place / "one", TEXTS[0])
    capsys.readouterr()
    assert main(["predict", str(place / "one"), "--text", TEXTS[0]]) == 0
    assert capsys.readouterr().out.splitlines() == [TEXTS[0], f"  {said.label} {said.probability:.3f}"]
    assert main(["predict", str(place / "one"), str(place / "other"), "--text", TEXTS[0], "--all-labels"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} {p:.3f}" in shown for name, p in said.probabilities.items())
    assert "  other  " in shown


def test_files_in_and_out(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts on lines, in a column, and on standard input are labelled alike, in their order."""
    lines, table, out = tmp_path / "texts.txt", tmp_path / "texts.csv", tmp_path / "out.csv"
    lines.write_text("\n".join(TEXTS))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "label"), *((text, "unknown") for text in TEXTS)])
    adapter, found = str(place / "one"), rankwise.predict(place / "one", TEXTS)
    assert main(["predict", adapter, "--file", str(table), "--columns", "text=question", "--out", str(out)]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == [said.label for said in found]
    assert [float(row["probability"]) for row in rows] == pytest.approx([said.probability for said in found], abs=1e-5)
    capsys.readouterr()
    assert main(["predict", adapter, "--file", str(lines), "--format", "jsonl", "--all-labels"]) == 0
    said = [json.loads(line)["predictions"]["one"] for line in capsys.readouterr().out.splitlines()]
    assert [it["label"] for it in said] == [it.label for it in found]
    assert said[0]["probabilities"] == pytest.approx(dict(found[0].probabilities), abs=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
        assert main(["predict", adapter, str(place / "other"), "--format", "csv", "--all-labels"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["one.label"] for row in rows] == [it.label for it in found]
    assert [float(row["one.p(b)"]) for row in rows] == pytest.approx([it.probabilities["b"] for it in found], abs=1e-5)
    assert "other.label" in rows[0]


def test_several_labels_in_a_table_are_a_list_as_they_are_read(place: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    flags = ["--file", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out.csv")]
    assert main(["predict", str(place / "several"), *flags]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    found = rankwise.predict(place / "several", TEXTS)
    assert [tuple(json.loads(row["label"])) for row in rows] == [said.label for said in found]
    assert main(["predict", str(place / "number"), *flags]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [*rows[0]] == ["text", "value"]


def test_a_prediction_in_words() -> None:
    assert Prediction((), {"a": 0.25}).shown() == "none"
    assert Prediction(1.5, {}).shown() == "1.5"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{one}", "--text", " "], "The text is empty"),
        (["{one}", "--text", "a", "--file", "b"], "leave one of them out"),
        (["{one}", "--text", "a", "--columns", "text=b"], "--columns applies to --file"),
        (["{one}", "--text", "a", "--format", "xml"], '--format is "xml"; it is one of text, csv, jsonl'),
        (["{one}", "--text", "a", "--out", "b.txt"], "predictions are written as .csv or .jsonl"),
        (["{one}", "--file", "{root}/nothing.txt"], "nothing.txt can't be read"),
        (["{one}", "{several}", "--text", "a"], "use adapters of other labels one at a time"),
        (["--text", "a"], "No adapter is given"),
        (["{root}/runs", "--text", "a"], "adapter_config.json can't be read"),
    ],
)
def test_mistakes_are_one_line(place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    names: dict[str, Any] = {"root": place, **{name: place / name for name in ("one", "several")}}
    capsys.readouterr()
    assert main(["predict", *(flag.format(**names) for flag in flags)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


def test_mistakes_in_python(place: Path) -> None:
    with pytest.raises(DataError, match="Text 2 is empty"):
        rankwise.predict(place / "one", ["a", " "])
    with pytest.raises(DataError, match="There are no texts"):
        rankwise.predict(place / "one", [])
    with pytest.raises(ConfigError, match="The base is not known"):
        rankwise.predict([], ["a"])


@pytest.mark.parametrize("text", ["a\ud83db", "caf\udce9"])
def test_texts_that_are_none(place: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"Line 1 is no text: (half of a surrogate pair|not UTF-8)"):
        rankwise.predict(place / "one", [text])
    assert main(["predict", str(place / "one"), "--text", text]) == 2
    assert "Line 1 is no text" in capsys.readouterr().err


def test_standard_input_begins_with_a_mark(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffThe cat\x0csat\r\none\n".encode()), "utf-8"))
    assert main(["predict", str(place / "one"), "--format", "jsonl"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["The cat\x0csat", "one"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert main(["predict", str(place / "one")]) == 2
    assert "Standard input is no UTF-8 text" in capsys.readouterr().err


def test_prompts_in_a_file_that_was_cut(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"The cat\n" * 99)[:-9])
    assert main(["predict", str(place / "one"), "--file", str(tmp_path / "a.txt.gz")]) == 2
    assert "a.txt.gz can't be read (Compressed file ended" in capsys.readouterr().err


def test_a_run_in_place_of_its_adapter(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (place / "runs" / "one", place / "runs" / "one" / "best"):
        assert main(["predict", str(folder), "--text", "one"]) == 2
        assert "adapter" in capsys.readouterr().err
