"""`rankwise train` from options to an experiment: what takes effect, and what is shown."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from rankwise.cli import main
from text_models import make_model, make_tokenizer

ROWS = {
    "sft": [{"prompt": "cat sat " * 20 + str(n), "completion": " sat"} for n in range(40)],
    "classify": [{"text": "cat sat " * 20 + str(n), "label": "ab"[n % 2]} for n in range(40)],
}


def flags_of(folder: Path, kind: str, task: str) -> list[str]:
    make_model(kind).save_pretrained(folder / kind)
    make_tokenizer().save_pretrained(folder / kind)
    data = folder / f"{task}.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS[task])))
    flags = ["--model", str(folder / kind), "--task", task, "--data", str(data), "--out", str(folder / "out")]
    return [*flags, "--rank", "2", "--epochs", "1", "--batch-size", "8"]


@pytest.mark.parametrize(
    ("kind", "task", "more"),
    [
        ("llama", "sft", []),
        ("bert", "classify", ["--pooling", "model"]),
        ("bert", "classify", ["--pooling", "mean"]),
    ],
)
def test_gradient_checkpointing_takes_less_memory(
    kind: str, task: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags_of(tmp_path, kind, task), "--quiet", "--dry-run", "--json", *more]
    taken = []
    for way in ([], ["--gradient-checkpointing"]):
        capsys.readouterr()
        assert main(["train", *flags, *way]) == 0
        (pack,) = json.loads(capsys.readouterr().out)["packs"]
        taken.append(pack["bytes"])
    assert taken[1] < 0.8 * taken[0], "activations of two layers in place of one"


def test_a_prepared_example_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(tmp_path, "llama", "sft")
    assert main(["train", *flags, "--dry-run"]) == 0
    said = "".join(capsys.readouterr())
    assert "loss on 2 tokens; it stands between « and »" in said
    assert "« sat<|im_end|>»" in said
    assert main(["train", *flags, "--dry-run", "--quiet"]) == 0
    assert "«" not in "".join(capsys.readouterr())
