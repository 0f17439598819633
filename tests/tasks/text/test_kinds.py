"""Numbers and several labels a text, through the commands: trained, evaluated and merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
import transformers

from rankwise.cli import main
from rankwise.report import read_results
from rankwise.tasks.text.data.labels import read_labels
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.served import load_adapted
from text_models import make_model, make_tokenizer

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")
TEXTS = [f"{WORDS[n % 7]} {WORDS[n % 5]} {WORDS[n % 3]} {n}" for n in range(48)]

LABELS: dict[str, list[Any]] = {
    "number": [n % 7 + 0.5 for n in range(48)],
    "several": [[name for i, name in enumerate("abc") if n % 7 >> i & 1] for n in range(48)],
}

FIGURES = {
    "number": ("mean absolute error", "mean_absolute_error", {"loss", "root_mean_squared_error", "pearson"}),
    "several": ("exact match of labels", "accuracy", {"loss", "f1", "mcc"}),
}

LONG = {"number": ["--epochs", "20", "--lr", "1e-2"], "several": ["--epochs", "20", "--lr", "1e-2"]}
"""For how long an adapter trains until it has learned something."""

PROBLEMS = {"number": "regression", "several": "multi_label_classification"}


@pytest.mark.parametrize("kind", LABELS)
def test_from_a_file_to_a_merged_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data, run, out = (tmp_path / name for name in ("bert", "data.jsonl", "run", "merged"))
    make_model("bert", layers=1).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS[kind], strict=True)]
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(base), "--task", "classify", "--data", str(data), "--test", str(data), "--rank", "4"]
    flags += [*LONG[kind], "--batch-size", "8", "--quiet", "--out", str(run)]
    assert main(["train", *flags]) == 0
    results = read_results(run)
    (trained,) = results["runs"]
    folder = run / str(trained["adapter"])
    metric, figure, others = FIGURES[kind]
    assert results["metric"]["name"] == metric
    assert read_labels(folder).kind == kind

    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", str(data), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"][folder.name]
    assert figures[figure] == pytest.approx(trained["metric"], rel=1e-5)
    assert figures.keys() == {figure, *others}

    texts = [row["text"] for row in rows]
    adapted = load_adapted([folder], UseOptions())
    batch = dict(adapted.loaded.tokenizer(texts, return_tensors="pt", padding=True))
    with torch.no_grad():
        outputs = adapted.loaded.call(adapted.loaded.model, batch)
    if kind == "number":
        right = torch.tensor(LABELS[kind])
        assert float((outputs.squeeze(-1) - right).abs().mean()) == pytest.approx(trained["metric"], rel=1e-4)
        assert trained["metric"] < float((right - right.mean()).abs().mean()), "better than the mean of all"
    else:
        said = [[name for name, one in zip("abc", row, strict=True) if one > 0] for row in outputs.tolist()]
        hits = sum(own == label for own, label in zip(said, LABELS[kind], strict=True))
        assert hits / len(rows) == pytest.approx(trained["metric"])
        assert hits > len(rows) / 2, "the first word tells"

    assert main(["merge", str(folder), "--out", str(out)]) == 0
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert merged.config.problem_type == PROBLEMS[kind]
    assert read_labels(out) == read_labels(folder)
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "metric"), [("one", "f1"), ("several", "mcc")])
def test_classifiers_judged_by_other_metrics(
    kind: str, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data, run = (tmp_path / name for name in ("bert", "data.jsonl", "run"))
    make_model("bert", layers=1).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    labels = LABELS.get(kind, ["abc"[n % 7 % 3] for n in range(48)])
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(base), "--task", "classify", "--data", str(data), "--test", str(data), "--ranks", "4"]
    flags += ["--epochs", "2", "--batch-size", "8", "--lr", "1e-2", "--search", "0", "--plan", "grid", "--seeds", "1"]
    flags += ["--no-baseline"]
    assert main(["sweep", *flags, "--metric", metric, "--no-widen", "--quiet", "--out", str(run)]) == 0
    results = read_results(run)
    assert results["metric"]["name"] == {"f1": "macro F1", "mcc": "Matthews correlation"}[metric]
    trained = next(one for one in results["runs"] if one["configuration"] == "r4")
    capsys.readouterr()
    assert main(["evaluate", str(run / str(trained["adapter"])), "--data", str(data), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"][Path(str(trained["adapter"])).name]
    assert trained["metric"] == pytest.approx(figures[metric], rel=1e-5, abs=1e-6)
