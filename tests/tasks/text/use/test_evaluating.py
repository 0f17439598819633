"""`rankwise evaluate` on classifiers: floors, figures of each label, files, and examples that were trained on."""

import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
import rankwise
from rankwise.cli import main
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.data.seen import checksums, count_seen, write_seen
from rankwise.tasks.text.score.classes import (
    class_figures,
    confusion_of,
    draw_confusion,
    most_confused,
    write_classes,
    write_confusion,
)
from rankwise.tasks.text.score.floors import floor_outputs
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.score.metrics import classify_figures
from text_models import make_model, make_tokenizer

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a file of 30 training and one of 12 other examples, and an adapter."""
    root = tmp_path_factory.mktemp("evaluating")
    make_model("bert", layers=1).save_pretrained(root / "bert")
    make_tokenizer().save_pretrained(root / "bert")
    rows = [{"text": f"{WORDS[n % 7]} {WORDS[n % 5]} {n}", "label": "aabc"[n % 4]} for n in range(42)]
    for name, part in (("train", rows[:30]), ("new", rows[30:])):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    flags = ["--model", str(root / "bert"), "--task", "classify", "--data", str(root / "train.jsonl"), "--rank", "2"]
    flags += ["--validation", str(root / "train.jsonl"), "--test", str(root / "new.jsonl"), "--epochs", "2"]
    assert main(["train", *flags, "--batch-size", "8", "--lr", "1e-2", "--quiet", "--out", str(root / "run")]) == 0
    return root


def adapter_of(place: Path) -> Path:
    (folder,) = (place / "run" / "adapters").iterdir()
    return folder


def evaluate(place: Path, capsys: pytest.CaptureFixture[str], name: str, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(adapter_of(place)), "--data", str(place / f"{name}.jsonl"), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_files_agree_with_the_predictions(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(place, capsys, "new", "--report", str(tmp_path / "report"))
    name = adapter_of(place).name
    rows = [json.loads(line) for line in (place / "new.jsonl").read_text().splitlines()]
    said = [it.label for it in rankwise.predict(adapter_of(place), [row["text"] for row in rows])]
    right = [row["label"] for row in rows]
    shares = Counter(right)
    assert list(found["figures"]) == ["majority class", name]
    floor = found["figures"]["majority class"]
    assert floor["accuracy"] == pytest.approx(max(shares.values()) / len(rows))
    assert floor["loss"] == pytest.approx(-sum(n * math.log(n / len(rows)) for n in shares.values()) / len(rows))
    assert any("The base has no figures" in note for note in found["notes"])

    written = list(csv.DictReader(io.StringIO((tmp_path / "report" / "predictions.csv").read_text())))
    assert [row["label"] for row in written] == right
    assert [row["predicted_label"] for row in written] == said
    for label in "abc":
        hits = sum(s == r == label for s, r in zip(said, right, strict=True))
        figures = found["classes"][name][label]
        assert figures["n"] == shares[label]
        assert figures["recall"] == pytest.approx(hits / shares[label])
        assert figures["precision"] == pytest.approx(hits / max(1, said.count(label)))
        assert figures["f1"] == pytest.approx(2 * hits / (shares[label] + said.count(label)))
    classes = list(csv.DictReader(io.StringIO((tmp_path / "report" / "classes.csv").read_text())))
    assert [(row["adapter"], row["label"], int(row["n"])) for row in classes] == [(name, x, shares[x]) for x in "abc"]
    matrix = list(csv.reader(io.StringIO((tmp_path / "report" / f"confusion-{name}.csv").read_text())))
    pairs = Counter(zip(right, said, strict=True))
    assert matrix == [["label", *"abc"], *([r, *(str(pairs[r, s]) for s in "abc")] for r in "abc")]
    assert (tmp_path / "report" / f"confusion-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report" / "figures.json").read_text()) == found


def test_training_examples_are_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(name: str) -> list[str]:
        return [note for note in evaluate(place, capsys, name)["notes"] if "trained on" in note]

    assert told("new") == []
    (note,) = told("train")
    assert note.startswith("30 of 30 examples")
    new = (place / "new.jsonl").read_text()
    again = json.dumps({"text": json.loads((place / "train.jsonl").read_text().splitlines()[4])["text"].upper() + " "})
    (place / "mixed.jsonl").write_text(new + "\n" + again.replace("}", ', "label": "b"}'))
    (note,) = told("mixed")
    assert note.startswith("1 of 13 examples"), "whatever the letter case, the spacing and the label"


def test_an_adapter_outside_a_run_says_nothing(tmp_path: Path) -> None:
    examples = [Labelled(1, "a", "x"), Labelled(2, "b", "y")]
    adapter = tmp_path / "run" / "adapters" / "r8"
    adapter.mkdir(parents=True)
    assert count_seen(adapter, examples) == 0
    write_seen(tmp_path / "run", checksums(examples[:1]))
    assert count_seen(adapter, examples) == 1
    (tmp_path / "best").symlink_to(adapter)
    assert count_seen(tmp_path / "best", examples) == 1


@pytest.mark.parametrize(
    ("kind", "names", "right"),
    [
        ("one", "abc", torch.tensor([0, 1, 1, 1])),
        ("several", "ab", torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])),
        ("number", ("value",), torch.tensor([[1.0], [2.0], [6.0]])),
    ],
)
def test_no_constant_answer_beats_the_floor(kind: str, names: str, right: torch.Tensor) -> None:
    labels = Labels(kind, tuple(names))
    metric = {"one": "accuracy", "several": "accuracy", "number": "mean_absolute_error"}[kind]
    sign = -1 if kind == "number" else 1
    floor = floor_outputs(labels, right)
    best, loss = (sign * float(classify_figures(floor, right, kind)[metric]), _loss(floor, right, kind))
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = (3 * torch.randn(1, len(names), generator=g)).expand(len(right), -1)
        assert sign * float(classify_figures(other, right, kind)[metric]) <= best + 1e-6
        if kind == "one":  # the likeliest set is not the likeliest label by label, and the median not the mean
            assert _loss(other, right, kind) >= loss - 1e-2


def _loss(outputs: torch.Tensor, right: torch.Tensor, kind: str) -> float:
    return float(CLASSIFY_LOSSES[kind](outputs, {"labels": right}).mean())


def test_several_labels_a_text() -> None:
    labels = Labels("several", ("a", "b"))
    outputs, right = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = class_figures(outputs, right, labels)
    assert (found["a"].precision, found["a"].recall, found["a"].n) == (0.5, 1.0, 1)
    assert (found["b"].precision, found["b"].recall, found["b"].f1) == (0.0, 0.0, 0.0)
    assert confusion_of(outputs, right, labels) is None
    assert class_figures(outputs, right, Labels("number", ("value",))) == {}


def test_what_is_mixed_up_most_often_comes_first() -> None:
    counts = torch.tensor([[9.0, 1.0, 3.0], [0.0, 9.0, 0.0], [2.0, 0.0, 9.0]])
    labels = Labels("one", ("a", "b", "c"))
    assert most_confused(counts, labels) == [("a", "c", 3), ("c", "a", 2), ("a", "b", 1)]
    assert most_confused(torch.eye(3), labels) == []


def test_inspect_names_the_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((place / "run" / "results.json").read_text())
    (row,) = results["runs"]
    capsys.readouterr()
    assert main(["inspect", str(adapter_of(place)), "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert (run["name"], run["lr"], run["metric"]) == (row["name"], row["lr"], row["metric"])
    assert run["training_examples"] == 30
    assert main(["inspect", str(adapter_of(place))]) == 0
    assert f"seed {row['seed']}, 30 examples, finished, test accuracy" in " ".join(capsys.readouterr().out.split())


HOSTILE = Labels("one", ("=HYPERLINK(1)", "$\\frac{$", "\x1b[2Jx", "_a", "long " * 4000))


def test_labels_from_elsewhere_act_nowhere(tmp_path: Path) -> None:
    right = torch.arange(5)
    outputs = torch.eye(5).roll(1, 0)
    counts = confusion_of(outputs, right, HOSTILE)
    assert counts is not None
    draw_confusion(counts, HOSTILE, "$ _\x1b", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 2**20
    write_classes({"=a": class_figures(outputs, right, HOSTILE)}, tmp_path / "a.csv")
    write_confusion(counts, HOSTILE, tmp_path / "b.csv")
    for name in ("a.csv", "b.csv"):
        cells = [cell for row in csv.reader((tmp_path / name).read_text().splitlines()) for cell in row]
        assert "'=HYPERLINK(1)" in cells
        assert not any(cell.startswith("=") for cell in cells)


@pytest.mark.slow
def test_many_labels_are_drawn_in_a_picture_of_a_usual_size(tmp_path: Path) -> None:
    labels = Labels("one", tuple(f"label {i}" for i in range(1000)))
    draw_confusion(torch.eye(1000), labels, "a", tmp_path / "a.png")
    header = (tmp_path / "a.png").read_bytes()[16:24]
    assert max(int.from_bytes(header[:4]), int.from_bytes(header[4:])) < 5000


def test_a_report_replaces_no_file_of_the_user(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("predictions.csv", "confusion-mine.png"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        arguments = ["evaluate", str(adapter_of(place)), "--data", str(place / "new.jsonl"), "--report", str(folder)]
        assert main(arguments) == 2
        assert f"holds {name}, which is no file of an evaluation" in capsys.readouterr().err
        assert (folder / name).read_text() == "mine"
    data = tmp_path / "new.jsonl"
    data.write_text((place / "new.jsonl").read_text())
    assert main(["evaluate", str(adapter_of(place)), "--data", str(data), "--out", str(data)]) == 2
    assert main(["predict", str(adapter_of(place)), "--file", str(data), "--out", str(data)]) == 2
    assert data.read_text() == (place / "new.jsonl").read_text()
