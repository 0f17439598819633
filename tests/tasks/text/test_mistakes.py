"""What can be wrong with a model or its examples, met as a user meets it: one clear line, or handled and said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
from rankwise.cli import main
from rankwise.report import read_results
from text_models import VOCABULARY, make_model, make_tokenizer

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")
PAIRS = [{"prompt": f"{WORDS[n % 7]} {WORDS[n % 5]} {n}", "completion": f" {WORDS[n % 3]} sat"} for n in range(40)]
LABELLED = [{"text": f"{WORDS[n % 7]} {WORDS[n % 5]} {n}", "label": "abc"[n % 3]} for n in range(40)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": pair["prompt"]},
            {"role": "assistant", "content": pair["completion"]},
        ]
    }
    for pair in PAIRS
]
MARKED = "{% generation %}{{ messages[0]['content'] + 1 }}{% endgeneration %}"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}assistant: "


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mistakes")
    for kind in ("bert", "llama"):
        make_model(kind, layers=1).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    make_model("llama", layers=1).save_pretrained(root / "bare")
    make_tokenizer(template=None, pad=False).save_pretrained(root / "bare")
    make_model("llama", layers=1).save_pretrained(root / "own-code")
    config = json.loads((root / "own-code" / "config.json").read_text())
    config |= {
        "model_type": "unheard-of",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (root / "own-code" / "config.json").write_text(json.dumps(config))
    (root / "own-code" / "own.py").write_text("raise SystemExit('this code was run')\n")
    for kind in ("bert", "llama", "t5"):
        make_model(kind, layers=1).save_pretrained(root / f"{kind}-wide")
        wide_tokenizer().save_pretrained(root / f"{kind}-wide")
    for kind in ("bert", "llama"):
        make_model(kind, layers=1).save_pretrained(root / f"{kind}-other-width")
        make_tokenizer().save_pretrained(root / f"{kind}-other-width")
        path = root / f"{kind}-other-width" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64}))
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": PAIRS,
        "labelled": LABELLED,
        "chats": CHATS,
        "empty": [],
        "new-label": [*LABELLED[:6], {"text": "The cat", "label": "zebra"}],
        "zebra-pairs": [*PAIRS, {"prompt": "one", "completion": " zebra"}],
        "zebra-labelled": [*LABELLED, {"text": "one zebra", "label": "a"}],
        "long": [*PAIRS, {"prompt": "cat " * 400, "completion": " sat"}],
    }
    for name, examples in rows.items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    return root


def wide_tokenizer() -> Any:
    """One with the token "zebra" beyond the models' vocabulary, and a token for padding too."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_tokens(["zebra"])
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    return tokenizer


def train(place: Path, out: Path, model: str, task: str, data: str, *more: str) -> int:
    flags = ["--model", str(place / model), "--task", task, "--data", str(place / f"{data}.jsonl")]
    return main(["train", *flags, "--out", str(out), "--epochs", "1", "--batch-size", "8", "--quiet", *more])


@pytest.mark.parametrize(
    ("model", "task", "data", "flags", "words"),
    [
        ("nowhere", "sft", "pairs", [], "There is no folder"),
        ("bert", "sft", "pairs", [], "is not a causal model nor an encoder-decoder"),
        ("bare", "sft", "chats", [], "--chat-template"),
        ("llama", "sft", "empty", [], "empty.jsonl holds no examples"),
        ("bert", "classify", "labelled", ["--test", "new-label.jsonl"], 'training data does not: "zebra" (line 7)'),
        ("own-code", "sft", "pairs", [], "--trust-remote-code"),
        ("llama", "sft", "pairs", ["--max-length", "1000"], "--max-length is 1,000"),
        ("bert-wide", "classify", "zebra-labelled", [], 'Line 41 has the token "zebra" of number 320, and the model'),
        ("llama-wide", "sft", "zebra-pairs", [], 'Line 41 has the token "zebra" of number 320, and the model knows'),
        ("t5-wide", "sft", "zebra-pairs", [], 'Line 41 has the token "zebra" of number 320, and the model knows 320'),
        ("llama", "sft", "pairs", ["--dtype", "float16"], "overflow; give --dtype bfloat16, or leave --dtype out."),
        ("llama", "sft", "pairs", ["--precision", "fp8"], '--precision is "fp8"; it is one of auto, float32, bf16.'),
        ("llama", "sft", "pairs", ["--dtype", "bfloat16", "--precision", "float32"], "so --precision float32 can't be"),
        ("llama", "sft", "pairs", ["--attention", "flash_attention_2"], "Install it, or leave --attention out."),
        ("bert-other-width", "classify", "labelled", [], "another shape than its config.json says"),
        ("bert-other-width", "classify", "labelled", ["--pooling", "mean"], "is (32,), and would be (64,)"),
        ("llama-other-width", "sft", "pairs", [], '("lm_head.weight" is (320, 32), and would be (320, 64)); take'),
        ("llama", "sft", "chats", ["--chat-template", "{{ messages[0]['content'] + 1 }}"], "Line 1: the chat template"),
        ("llama", "sft", "chats", ["--chat-template", MARKED], "fails on the conversation: can only concatenate"),
        ("llama", "sft", "chats", ["--chat-template", "{{ 1 // 0 }}"], "(ZeroDivisionError). Mend the template"),
    ],
    ids=[
        "no model", "no causal model", "no template", "no examples", "a label only in test", "own code", "no room",
        "a token beyond", "a token of a prompt beyond", "a token of an answer beyond", "half precision",
        "no such precision", "a precision below the base's",
        "no such attention", "another width", "another width of an encoder", "another width of a writer",
        "a template's types", "types inside its mark", "a template's numbers",
    ],
)  # fmt: skip
def test_one_line_and_nothing_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    model: str, task: str, data: str, flags: list[str], words: str,
) -> None:  # fmt: skip
    flags = [str(place / flag) if flag.endswith(".jsonl") else flag for flag in flags]
    assert train(place, tmp_path / "out", model, task, data, *flags) == 2
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert words in said
    assert said.startswith("rankwise: ")
    assert not (tmp_path / "out").exists()


def test_a_token_for_padding_that_the_model_lacks_is_replaced(place: Path, tmp_path: Path) -> None:
    assert train(place, tmp_path / "out", "bert-wide", "classify", "labelled") == 0
    notes = read_results(tmp_path / "out")["notes"]
    said = 'The tokenizer has no token for padding that the model knows; rows are filled up with "<|im_end|>", masked.'
    assert said in notes


def test_too_long_examples_are_cut_and_said(place: Path, tmp_path: Path) -> None:
    assert train(place, tmp_path / "out", "llama", "sft", "long", "--max-length", "16") == 0
    notes = " ".join(read_results(tmp_path / "out")["notes"])
    assert "longer than 16 tokens (the longest has 403) and were cut" in notes
    assert "have no token with loss and were left out: line 41" in notes


def test_positions_that_begin_after_the_padding_token(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=320, max_position_embeddings=40, pad_token_id=2, **small)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
    make_tokenizer().save_pretrained(tmp_path / "roberta")
    rows = [*LABELLED, {"text": "cat " * 99, "label": "a"}]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert train(tmp_path, tmp_path / "out", "roberta", "classify", "long", "--pooling", "model") == 0
    notes = " ".join(read_results(tmp_path / "out")["notes"])
    assert "longer than 37 tokens" in notes, "40 positions, of which 0 to 2 are not for texts"


def test_what_was_cut_is_counted_for_each_split(place: Path, tmp_path: Path) -> None:
    """The same counts in two splits are two notes; what holds no count is said once."""
    rows = [*PAIRS[:3], {"prompt": "one", "completion": "cat " * 30}, {"prompt": "cat " * 30, "completion": "sat"}]
    for name in ("validation", "test"):
        (place / f"{name}-long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [part for name in ("validation", "test") for part in (f"--{name}", str(place / f"{name}-long.jsonl"))]
    assert train(place, tmp_path / "out", "llama", "sft", "long", "--max-length", "16", *given) == 0
    notes = read_results(tmp_path / "out")["notes"]
    for name in ("validation", "test"):
        assert sum(note.startswith(f"2 of 5 {name} examples are longer than 16 tokens") for note in notes) == 1
        assert f"1 of 5 {name} examples have no token with loss and were left out: line 5." in notes
    assert sum(note.startswith("1 of 41 training examples are longer than 16 tokens") for note in notes) == 1
    assert sum("completions follow the prompt without a space" in note for note in notes) == 1


def test_a_template_given_and_padding_found(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(place, out, "bare", "sft", "chats", "--chat-template", TEMPLATE) == 0
    results = read_results(out)
    assert any("padding" in note for note in results["notes"]), results["notes"]
    kept = json.loads((out / results["runs"][0]["adapter"] / "prompting.json").read_text())
    assert kept["chat_template"] == TEMPLATE


def test_memory_and_time_are_said_beforehand(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(place / "bert"), "--task", "classify", "--data", str(place / "labelled.jsonl")]
    assert main(["train", *flags, "--out", str(tmp_path / "out"), "--epochs", "1", "--batch-size", "8"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    before, _, after = said.partition("It will take at most ")
    assert "Training" not in before
    assert re.search(
        r" MiB of memory, the base's 0\.1 and the program's [0-9.,]+ included, [0-9.]+ MiB of disk, of which ", after
    )
    assert "learning rates, tried where" not in after, "there is one rate"
