"""Sweeps of texts over bases of half precision; the refusal to train float16 on a CPU is out of the way."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from rankwise.cli import main
from rankwise.report import read_results
from text_models import make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")


@pytest.mark.parametrize(
    ("kind", "task", "dtype"),
    [
        pytest.param("bert", "classify", "float16", marks=pytest.mark.slow),
        ("llama", "sft", "bfloat16"),
        pytest.param("bert", "classify", "bfloat16", marks=pytest.mark.slow),
        pytest.param("llama", "sft", "float16", marks=pytest.mark.slow),
        pytest.param("t5", "sft", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_it_learns_about_what_it_learns_in_float32(
    kind: str, task: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "float16":
        monkeypatch.setattr("rankwise.tasks.text.run.check_model", lambda model, mend: None)
    make_model(kind).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    g = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(7, (4 + n % 9,), generator=g)) for n in range(40)]
    rows = [{"text": f"{text} {n}", "label": "abc"[n % 3]} for n, text in enumerate(texts)]
    if task == "sft":
        rows = [{"prompt": f"{text} {n}", "completion": f" {WORDS[n % 7]} sat"} for n, text in enumerate(texts)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(tmp_path / "model"), "--task", task, "--data", str(tmp_path / "data.jsonl")]
    flags += ["--ranks", "1,4", "--seeds", "1", "--epochs", "1", "--batch-size", "8", "--lr", "1e-2", "--quiet"]
    flags += ["--plan", "grid", "--no-widen", "--search", "0", "--no-base-dropout"]
    losses = {}
    for kept in (dtype, "float32"):
        out = tmp_path / kept
        assert main(["sweep", *flags, "--dtype", kept, "--out", str(out)]) == 0
        results = read_results(out)
        assert not any("one after another" in note for note in results["notes"])
        runs = results["runs"]
        losses[kept] = {run["configuration"]: run["validation_loss"] for run in runs}
        for run in runs:
            assert (run["status"], run["adapter"] is not None) == ("finished", run["method"] in ("lora", "head"))
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.05)
    folder = next(run["adapter"] for run in read_results(tmp_path / dtype)["runs"] if run["adapter"])
    assert main(["evaluate", str(tmp_path / dtype / folder), "--data", str(tmp_path / "data.jsonl")]) == 0
