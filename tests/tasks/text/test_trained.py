"""An adapter is used as it was trained: what lies next to it says how, and flags say otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from rankwise.cli import main
from rankwise.errors import ConfigError, DataError
from rankwise.report import read_results
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.prompting import Prompting
from rankwise.tasks.text.trained import Trained, read_trained
from rankwise.tasks.text.use.generating import as_prompt, write_texts
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.served import BASE_NAME, load_adapted
from rounding import alike
from text_models import make_model, make_tokenizer

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")
TASKS = {"bert": ("classify", "labelled"), "llama": ("sft", "pairs"), "gpt2": ("sft", "pairs")}
QUICK = ["--epochs", "1", "--batch-size", "8", "--lr", "1e-2", "--rank", "2", "--quiet"]
CLOSE = 1e-6
"""Losses over a small base in 8 bits differ by little more from those over the base as it is."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    g = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(7, (4 + n % 9,), generator=g)) for n in range(40)]
    labelled = [{"text": f"{text} {n}", "label": "abc"[n % 3]} for n, text in enumerate(texts)]
    pairs = [{"prompt": f"{text} {n}", "completion": f" {WORDS[n % 7]} sat"} for n, text in enumerate(texts)]
    for name, rows in (("labelled", labelled), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in TASKS:
        make_model(kind, layers=1).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    return root


def train(place: Path, out: Path, kind: str, *more: str) -> Path:
    """The folder of an adapter whose test examples are the whole file: a copy of what is trained once for all tests."""
    task, name = TASKS[kind]
    data, whole = str(place / f"{name}.jsonl"), place / "runs" / " ".join([kind, *more]).replace("/", "-")
    flags = ["--model", str(place / kind), "--task", task, "--data", data, "--test", data, *QUICK, *more]
    if not whole.exists():
        assert main(["train", *flags, "--out", str(whole)]) == 0
    (folder,) = (shutil.copytree(whole, out) / "adapters").iterdir()
    return folder


def evaluate(place: Path, kind: str, capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *given, "--data", str(place / f"{TASKS[kind][1]}.jsonl"), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("kind", "flags", "otherwise"),
    [
        ("llama", ["--loss-on", "all"], ["--loss-on", "answer"]),
        ("llama", ["--max-length", "16"], ["--max-length", "128"]),
        ("llama", ["--quantize", "int8"], ["--quantize", "none"]),
        ("bert", ["--max-length", "6"], ["--max-length", "64"]),
        ("bert", ["--pooling", "mean"], None),
        ("bert", ["--quantize", "int8"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_evaluate_gives_the_figures_of_the_run(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    flags: list[str],
    otherwise: list[str] | None,
) -> None:
    if "--quantize" in flags:
        pytest.importorskip("bitsandbytes")
    folder = train(place, tmp_path / "run", kind, *flags)
    results = read_results(tmp_path / "run")
    (run,) = results["runs"]
    figure = {"llama": "loss", "bert": "accuracy"}[kind]
    figures = evaluate(place, kind, capsys, str(folder))["figures"]
    assert figures[folder.name][figure] == pytest.approx(run["metric"], rel=CLOSE)
    assert f"{figures[folder.name][figure]:.4g}" in (folder / "README.md").read_text()
    if kind == "llama":
        assert figures[BASE_NAME]["loss"] == pytest.approx(results["base"]["metric"], rel=CLOSE)
    if otherwise:
        told = evaluate(place, kind, capsys, str(folder), *otherwise)["figures"]
        assert told[folder.name]["loss"] != pytest.approx(figures[folder.name]["loss"], rel=CLOSE)


def test_what_lies_beside_an_adapter(place: Path, tmp_path: Path) -> None:
    sft = train(place, tmp_path / "sft", "llama", "--loss-on", "all", "--max-length", "32")
    assert read_trained(sft) == Trained(max_length=32, loss_on="all")
    assert read_trained(train(place, tmp_path / "auto", "bert")) == Trained(pooling="model")
    assert load_adapted([sft], UseOptions()).one_way().max_length == 32
    (sft / "training.json").unlink()
    assert read_trained(sft) is None
    assert load_adapted([sft], UseOptions()).one_way().loss_on == "answer", "an adapter without a word"
    (sft / "training.json").write_text('{"max_length": "long"}')
    with pytest.raises(DataError, match=r"training\.json is damaged; it holds"):
        read_trained(sft)


def test_merging_finds_the_pooling(place: Path, tmp_path: Path) -> None:
    folder = train(place, tmp_path / "run", "bert", "--pooling", "mean")
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "2_Dense" / "model.safetensors").exists()


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_an_adapter_from_before_the_pooling_was_recorded_is_read_by_its_settings(
    place: Path, tmp_path: Path, pooling: str
) -> None:
    folder = train(place, tmp_path / "run", "bert", "--pooling", pooling)
    expected = load_adapted([folder], UseOptions()).loaded.head
    (folder / "training.json").unlink()
    assert (
        load_adapted([folder], UseOptions()).loaded.head
        == expected
        == (("head",) if pooling == "mean" else ("classifier",))
    )


def test_an_adapter_of_another_head_is_not_trained_on(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(place, tmp_path / "run", "bert", "--pooling", "mean")
    flags = ["--model", str(place / "bert"), "--task", "classify", "--data", str(place / "labelled.jsonl"), *QUICK[:-3]]
    capsys.readouterr()
    assert main(["train", *flags, "--init-from", str(folder), "--out", str(tmp_path / "more"), "--quiet"]) == 2
    assert "was trained with --pooling mean; give it here too" in capsys.readouterr().err


def test_an_adapter_of_a_quantised_base_is_merged_into_the_base_as_it_is(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    folder = train(place, tmp_path / "run", "llama", "--quantize", "int8")
    ids, logits = torch.tensor([[5, 9, 30, 7]]), {}
    for way, flags in (("plain", []), ("none", ["--quantize", "none"]), ("int8", ["--quantize", "int8"])):
        capsys.readouterr()
        assert main(["merge", str(folder), "--out", str(tmp_path / way), *flags]) == 0
        said = "merged into the base as it is" in capsys.readouterr().out
        assert said == (way == "plain")
        with torch.no_grad():
            logits[way] = AutoModelForCausalLM.from_pretrained(tmp_path / way).eval()(ids).logits
    assert alike(logits["plain"], logits["none"])
    assert not alike(logits["plain"], logits["int8"])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merged_into_rounded_weights_it_says_what_it_said_in_training(place: Path, tmp_path: Path, kind: str) -> None:
    """Layers without an adapter too; GPT-2's have their weights transposed."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    targets = {"llama": ["--target-modules", "q_proj,v_proj"], "gpt2": []}[kind]
    folder = train(place, tmp_path / "run", kind, "--quantize", "int8", *targets)
    assert main(["merge", str(folder), "--quantize", "int8", "--out", str(tmp_path / "merged")]) == 0
    merged, told = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(told.values()), told
    adapted = load_adapted([folder], UseOptions())
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad(), adapted.acting(folder.name):
        expected = adapted.loaded.model(ids).logits
        logits = merged.eval()(ids).logits
    # bitsandbytes also rounds what goes into a layer of 8 bits.
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()
    plain = merged.get_parameter("lm_head.weight")
    assert torch.equal(plain, adapted.loaded.model.get_parameter("lm_head.weight"))


def test_each_adapter_is_asked_in_its_own_way(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    ways = {
        "arrow": ["--separator", " ->"],
        "chat": ["--chat"],
        "template": ["--chat", "--chat-template", template],
    }
    trained = {way: train(place, tmp_path / way, "llama", *flags) for way, flags in ways.items()}
    folders = [folder.rename(tmp_path / way / way) for way, folder in trained.items()]
    model, prompts, how = str(place / "llama"), [as_prompt("The cat"), as_prompt("one two")], Writing(max_new_tokens=5)
    together = load_adapted(folders, UseOptions(model=model))
    assert "each is asked in its own, the base as arrow." in together.notes[-1]
    given: list[str] = []
    tokenizer = type(together.loaded.tokenizer)
    call = tokenizer.__call__

    def heard(self: Any, text: Any, **more: Any) -> Any:
        given.extend(text if isinstance(text, list) else [text])
        return call(self, text, **more)

    monkeypatch.setattr(tokenizer, "__call__", heard)
    for folder in folders:
        given.clear()
        ours = write_texts(together, folder.name, prompts, how)
        asked = list(given)
        given.clear()
        assert ours == write_texts(load_adapted([folder], UseOptions(model=model)), folder.name, prompts, how)
        assert asked == given
    assert "[The cat]" in asked
    with pytest.raises(ConfigError, match="different --chat, so their figures can't be compared; give --chat, or"):
        together.one_way()
    same = load_adapted(folders, UseOptions(model=model, chat=False, separator=":", chat_template=template))
    assert same.one_way().separator == ":"


def test_one_base_can_not_have_two_forms(place: Path, tmp_path: Path) -> None:
    folders = [train(place, tmp_path / pooling, "bert", "--pooling", pooling) for pooling in ("mean", "model")]
    with pytest.raises(ConfigError, match=r"different --pooling \(mean, model\); give --pooling, or use them one at"):
        load_adapted(folders, UseOptions())


def test_what_was_kept_before_is_still_read(place: Path, tmp_path: Path) -> None:
    folder = train(place, tmp_path / "run", "llama", "--separator", ":")
    (folder / "training.json").unlink()
    assert json.loads((folder / "prompting.json").read_text()) == vars(Prompting(separator=":"))
    assert load_adapted([folder], UseOptions()).one_way().separator == ":"


def test_a_short_training_leaves_room_for_answers(place: Path, tmp_path: Path) -> None:
    """Examples were cut for training; a prompt and its answer may take the whole context."""
    folder = train(place, tmp_path / "run", "llama", "--max-length", "16")
    adapted = load_adapted([folder], UseOptions())
    (answer,) = write_texts(adapted, folder.name, [as_prompt("one two three cat sat")], Writing(max_new_tokens=20))
    assert isinstance(answer, str)
