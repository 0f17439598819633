"""`rankwise sweep --quantize nf4 --init loftq`, from the command to an adapter that PEFT runs."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BitsAndBytesConfig

import rankwise
from rankwise.cli import main
from rankwise.lora import adapter_tensors
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.layer_types.quantised import plain_weight
from rankwise.results import read_results
from text_models import VOCABULARY, make_tokenizer


def base(folder: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=2, num_labels=2, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


SETTINGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
"""transformers' own settings for what `quantize` does."""


def quantised(folder: Path, kind: str, by: str = "rankwise") -> nn.Module:
    if by == "transformers":
        config = BitsAndBytesConfig(**SETTINGS[kind], llm_int8_skip_modules=["classifier"])
        model = AutoModelForSequenceClassification.from_pretrained(folder, device_map="cpu", quantization_config=config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        rankwise.quantize(model, kind, skip="classifier")
    model.train()  # 8-bit layers of a CPU round their inputs where they don't train
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.slow
def test_from_the_command_to_peft(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base(tmp_path / "base")
    rows = [{"text": "cat sat " * (1 + n % 5) + "dog " * (n % 2) + str(n), "label": "ab"[n % 2]} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(tmp_path / "base"), "--task", "classify", "--data", str(tmp_path / "rows.jsonl")]
    flags += ["--quantize", kind, "--init", "kaiming,loftq", "--ranks", "2,4", "--lr", "1e-3", "--epochs", "1"]
    flags += ["--plan", "grid", "--seeds", "1", "--batch-size", "8", "--out", str(tmp_path / "out")]
    assert main(["sweep", *flags]) == 0
    assert "linear layers of the base are kept in" in "".join(capsys.readouterr())
    results = read_results(tmp_path / "out")
    named = {run.configuration: run for run in results.runs if run.method == "lora"}
    assert list(named) == ["r2", "r4", "r2 loftq", "r4 loftq"]
    folder = tmp_path / "out" / named["r4 loftq"].adapter
    ours, theirs = quantised(tmp_path / "base", kind), quantised(tmp_path / "base", kind, by="transformers")
    rankwise.load_adapter(ours, folder)
    peer = PeftModel.from_pretrained(theirs, str(folder)).train()
    batch = {"input_ids": torch.arange(40).view(4, 10), "attention_mask": torch.ones(4, 10, dtype=torch.long)}
    expected = ours(**batch).logits
    torch.testing.assert_close(peer(**batch).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(quantised(tmp_path / "base", kind)(**batch).logits, expected, atol=1e-3)
    if kind == "nf4":
        check_still_near_what_was_taken(tmp_path / "base", ours)
    # And the commands that use an adapter quantise the base again.
    assert main(["evaluate", str(folder), "--data", str(tmp_path / "rows.jsonl"), "--json"]) == 0


def check_still_near_what_was_taken(folder: Path, ours: nn.Module) -> None:
    """After some steps s B A is near what quantising took from the weights; in 8 bits that is less than a step."""
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    rounded = quantised(folder, "nf4")
    for path, (A, B) in adapter_tensors(ours).items():
        layer = rounded.get_submodule(path)
        missing = plain.get_submodule(path).weight - plain_weight(layer, layer_type_of(layer))
        update = ours.get_submodule(path).lora.scale["default"] * B @ A
        assert (missing - update).norm() < missing.norm()
