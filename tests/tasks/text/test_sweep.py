"""`rankwise sweep` on small random models: from a file to a recommended adapter that PEFT loads."""

import json
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
from rankwise.adapter_files import load_adapter
from rankwise.cli import main
from rankwise.report import read_results
from rankwise.tasks.text.data.labels import read_labels
from rankwise.tasks.text.model.models import ModelOptions, load_text_model
from rankwise.tasks.text.score import vocabulary
from rankwise.tasks.text.score.losses import token_sums
from rankwise.train.machine import precision
from text_models import make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
"""peft asks transformers by old names."""

ROWS = 60
WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")
QUICK = ["--epochs", "2", "--batch-size", "8", "--quiet"]
ONE_RATE = ["--lr", "1e-2", "--search", "0"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for kind in ("bert", "llama"):
        make_model(kind, layers={"bert": 1, "llama": 2}[kind]).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    g = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(7, (4 + n % 9,), generator=g)) for n in range(ROWS)]
    labelled = [{"text": f"{text} {n}", "label": "abc"[n % 3]} for n, text in enumerate(texts)]
    pairs = [{"prompt": f"{text} {n}", "completion": f" {WORDS[n % 7]} sat"} for n, text in enumerate(texts)]
    for name, rows in (("labelled", labelled), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def run(folders: Path, out: Path, kind: str, task: str, *more: str, ranks: str = "1,4") -> int:
    data = folders / {"classify": "labelled.jsonl", "sft": "pairs.jsonl"}[task]
    model = [] if "--model" in more else ["--model", str(folders / kind)]
    flags = [*model, "--task", task, "--data", str(data), "--out", str(out)]
    grid = [] if "--widen" in more else ["--no-widen"]
    plan = [] if "--plan" in more else ["--plan", "grid", "--seeds", "1"]
    rates = [] if "--lr" in more else ["--lr", "1e-3,1e-2"]
    return main(["sweep", *flags, "--ranks", ranks, *QUICK, *rates, *plan, *grid, *more])


def sums_in_a_look(outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """`token_sums`, which takes all logits, where the model is looked at; training and evaluation make none."""
    assert not {"gradients", "evaluate"} & {frame.name for frame in traceback.extract_stack()}
    return token_sums(outputs, batch)


@pytest.fixture(scope="module")
def language_model(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of a language model."""
    out = tmp_path_factory.mktemp("language") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "token_sums", sums_in_a_look)
        assert run(folders, out, "llama", "sft", *ONE_RATE, "--no-baseline") == 0
    return out


@pytest.fixture(scope="module")
def classifier(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of a classifier, its head alone and full fine-tuning."""
    out = tmp_path_factory.mktemp("classifier") / "out"
    assert run(folders, out, "bert", "classify", *ONE_RATE) == 0
    return out


def test_classifiers_with_a_head_of_their_own(folders: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    out = tmp_path / "out"
    assert run(folders, out, "bert", "classify", "--search", "20", "--widen", "--no-baseline", ranks="4") == 0
    results = read_results(out)
    assert [c["name"] for c in results["configurations"]] == ["r4", "head"]
    assert results["base"]["metric"] is None
    assert {c["lr"] for c in results["grid"]["search"] if c["configuration"] == "head"} > {0.01, 0.1}
    assert len(results["runs"]) == 2, "the runs that count are those at the rates found"
    chosen = next(run for run in results["runs"] if run["configuration"] == "r4")
    folder = out / chosen["adapter"]
    assert (folder / "labels.json").exists()

    labels = read_labels(folder)
    loaded = load_text_model(folders / "bert", "classify", labels, ModelOptions())
    ids = loaded.tokenizer(["The cat sat", "one two"], return_tensors="pt", padding=True)
    batch = dict(ids)
    load_adapter(loaded.model, folder)
    with torch.no_grad():
        ours = loaded.call(loaded.model, batch)
        fresh = load_text_model(folders / "bert", "classify", labels, ModelOptions())
        theirs = peft.PeftModel.from_pretrained(fresh.model, str(folder)).eval()
        logits = fresh.call(theirs, batch)
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)


def test_the_adaptive_plan_searches_at_the_middle_rank_and_the_head(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folders, out, "bert", "classify", "--search", "20", "--plan", "auto", "--seeds", "2") == 0
    results = read_results(out)
    searched = {one["configuration"] for one in results["grid"]["search"]}
    assert {"head", "full"} < searched
    (middle,) = searched - {"head", "full"}
    runs = {run["configuration"] for run in results["runs"]}
    assert {middle, "full"} <= runs <= {"r1", "r4", "head", "full"}
    assert {run["seed"] for run in results["runs"]} == {0, 1}


def test_a_language_model(folders: Path, language_model: Path) -> None:
    peft = pytest.importorskip("peft")
    out, results = language_model, read_results(language_model)
    assert dict(results["metric"]) == {"name": "loss a token", "higher_is_better": False}
    assert results["base"]["metric"] > min(c["mean"] for c in results["configurations"])
    folder = out / results["answer"]["adapter"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", str(folders / "llama"))
    ids = torch.randint(50, (2, 9))
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(make_model("llama"), str(folder)).eval()(ids).logits
        model = make_model("llama")
        load_adapter(model, folder)
        ours = model.eval()(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over several threads are added in another order for rows in parts, and AdamW's first steps enlarge that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_joined_rows_parts_and_checkpointing_learn_alike(
    folders: Path, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [run["validation_loss"] for run in read_results(language_model)["runs"]]
    for flags in (["--rows-a-pass", "3"], ["--gradient-checkpointing"]):
        out = tmp_path / flags[0]
        assert run(folders, out, "llama", "sft", *ONE_RATE, "--no-baseline", *flags) == 0
        assert [run["validation_loss"] for run in read_results(out)["runs"]] == pytest.approx(plain, rel=1e-4)
    assert run(folders, tmp_path / "joined", "llama", "sft", *ONE_RATE, "--no-baseline", "--join") == 0
    assert "«" not in capsys.readouterr().out, "--quiet shows nothing"
    joined = read_results(tmp_path / "joined")
    n = {name: facts["n"] for name, facts in dict(joined["data"]).items()}
    assert n["train"] < ROWS * 0.8, "several examples a row"
    card = (tmp_path / "joined" / joined["runs"][0]["adapter"] / "README.md").read_text()
    assert f"| train | {ROWS - n['validation'] - n['test']} |" in card, "examples, not rows"


@pytest.fixture(scope="module")
def uninterrupted(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert run(folders, out, "bert", "classify", "--search", "20", "--no-baseline", ranks="1") == 0
    return out


@pytest.mark.parametrize("at", [2, 6], ids=["while rates are looked for", "after"])
def test_going_on_after_an_interruption(
    folders: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
) -> None:
    from rankwise.train import loop

    by_step = loop.PackTraining.by_step
    calls: list[int] = []

    def interrupted(self: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return by_step(self)

    monkeypatch.setattr(loop.PackTraining, "by_step", interrupted)
    out = tmp_path / "out"
    flags = ["--search", "20", "--no-baseline", "--checkpoint-epochs", "1"]
    assert run(folders, out, "bert", "classify", *flags, ranks="1") == 130
    assert f"resume with: rankwise sweep --resume {out}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["sweep", "--resume", str(out), "--quiet"]) == 0
    ours, theirs = read_results(out), read_results(uninterrupted)
    assert ours["configurations"] == theirs["configurations"]
    assert ours["grid"] == theirs["grid"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "classfy"], '--task is "classfy"; it is one of classify'),
        (["--model", "no/such"], 'There is no folder "no/such"'),
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--ranks", "0"], "--ranks is"),
        (["--ranks", "a"], '"a" is no list of whole numbers'),
        (["--lr", "-1"], "--lr is"),
        (["--columns", "text"], '"text" names no columns'),
        (["--target-modules", "nope"], "nope"),
        (["--max-length", "100000"], "--max-length is 100,000"),
        (["--dtype", "float16"], "The model is in float16 on the CPU"),
        (["--device", "cuda:7"], 'There is no device "cuda:7"'),
        (
            ["--metric", "bleu"],
            '--metric is "bleu"; data with one label a text can be judged by accuracy, f1, mcc, loss.',
        ),
        (["--join"], "--join joins texts to imitate"),
        (["--task", "sft"], "is not a causal model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_a_line(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    given = {"--model": str(folders / "bert"), "--task": "classify", "--data": str(folders / "labelled.jsonl")}
    if flags == ["--task", "sft"]:
        given["--data"] = str(folders / "pairs.jsonl")
    arguments = [part for pair in given.items() if pair[0] != flags[0] for part in pair]
    assert main(["sweep", *arguments, "--out", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1], said
    assert not (tmp_path / "out").exists()


def test_training_one_adapter(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(folders / "llama"), "--task", "sft", "--data", str(folders / "pairs.jsonl"), "--quiet"]
    flags += ["--out", str(tmp_path / "out"), "--epochs", "1", "--batch-size", "8"]
    assert main(["train", *flags, "--rank", "2"]) == 0
    (run,) = read_results(tmp_path / "out")["runs"]
    assert (run["r"], run["lr"], run["seed"]) == (2, 3e-4, 0)
    assert (tmp_path / "out" / run["adapter"] / "adapter_model.safetensors").exists()
    said = capsys.readouterr().out.splitlines()
    adapter = tmp_path / "out" / run["adapter"]
    assert said[-2:] == [str(adapter), f'Next: rankwise generate {adapter} --prompt "..."']
    assert not any("% of" in line or "Of r = 2" in line for line in said), "there is nothing to compare"
    assert main(["train", *flags, "--overwrite", "--rank", "2,4"]) == 2
    assert "rankwise train trains one adapter, and --ranks names 2" in capsys.readouterr().err
    assert main(["train", *flags, "--overwrite", "--baseline"]) == 2
    assert "--baseline" in capsys.readouterr().err


def test_the_one_adapter_is_the_answer(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a classifier, whose head alone would be smaller; and the run repeats from its own configuration."""
    flags = ["--model", str(folders / "bert"), "--task", "classify", "--data", str(folders / "labelled.jsonl")]
    flags += ["--epochs", "1", "--batch-size", "8", "--seed", "7"]
    monkeypatch.setenv("TERM", "dumb")
    assert main(["train", *flags, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "Training 1 run\n" in said.out + said.err
    results = read_results(tmp_path / "out")
    (run,) = results["runs"]
    assert (run["method"], run["seed"]) == ("lora", 7)
    assert results["answer"]["adapter"] == run["adapter"]
    assert "No LoRA or head-only" not in said.out
    config = str(tmp_path / "out" / "config.yaml")
    assert main(["train", "--quiet", "--config", config, "--out", str(tmp_path / "again")]) == 0
    assert read_results(tmp_path / "again")["configurations"] == results["configurations"]


def test_over_a_quantised_base(folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "out"
    assert run(folders, out, "llama", "sft", *ONE_RATE, "--quantize", "int8") == 0
    results = read_results(out)
    assert [c["method"] for c in results["configurations"]] == ["lora", "lora"]
    assert any("linear layers of the base are kept in int8" in note for note in results["notes"])
    assert min(c["mean"] for c in results["configurations"]) < results["base"]["metric"]


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_dry_run(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    flags = ["--model", str(folders / "bert"), "--task", "classify", "--data", str(folders / "labelled.jsonl")]
    grid = ["--ranks", "1,4", "--plan", "grid", "--search", "20", "--lr", "1e-3,1e-2", "--seeds", "2"]
    search = grid if command == "sweep" else []
    assert main([command, *flags, *search, "--out", str(tmp_path / "out"), "--dry-run", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    stages = {"sweep": ["search"] * 3 + ["training"] * 3, "train": ["training"]}[command]
    assert [pack["stage"] for pack in told["packs"]] == stages
    # Of the search: one seed at two rates; then two seeds at the rate that it finds.
    assert [len(pack["runs"]) for pack in told["packs"]] == {"sweep": [4, 2, 2] * 2, "train": [1]}[command]
    assert not any(tmp_path.iterdir())


def test_an_adapter_is_trained_on(
    folders: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of nothing it is what it was, its head included; beside it a fresh adapter is not."""
    adapters = (r for r in read_results(classifier)["runs"] if r["method"] == "lora")
    chosen = max(adapters, key=lambda r: (r["validation_metric"], r["r"]))
    folder = Path(shutil.copytree(classifier / chosen["adapter"], tmp_path / Path(chosen["adapter"]).name))
    flags = ["--model", str(folders / "bert"), "--task", "classify", "--data", str(folders / "labelled.jsonl")]
    flags += ["--lr", "1e-9", "--epochs", "1", "--quiet", "--init-from", str(folder)]
    assert main(["train", *flags, "--out", str(tmp_path / "train")]) == 0
    (again,) = [r for r in read_results(tmp_path / "train")["runs"] if r["method"] == "lora"]
    assert again["validation_loss"] == pytest.approx(chosen["validation_loss"], rel=1e-4)
    assert (again["metric"], again["r"]) == (chosen["metric"], chosen["r"])

    more = ["--ranks", "1", "--seeds", "2", "--plan", "grid", "--search", "0", "--no-baseline"]
    more += ["--out", str(tmp_path / "sweep")]
    assert main(["sweep", *flags, *more]) == 0
    losses = {r["configuration"]: r["validation_loss"] for r in read_results(tmp_path / "sweep")["runs"]}
    assert set(losses) == {"r1", f"from-{folder.name}", "head"}
    assert losses[f"from-{folder.name}"] == pytest.approx(chosen["validation_loss"], rel=1e-4)
    assert losses["r1"] != pytest.approx(chosen["validation_loss"], rel=1e-3)

    capsys.readouterr()
    assert main(["train", *flags, "--rank", "4", "--out", str(tmp_path / "no")]) == 2
    assert "--init-from brings its own rank" in capsys.readouterr().err
    labels = folder / "labels.json"
    labels.write_text(labels.read_text().replace('"a"', '"z"'))
    assert main(["train", *flags, "--out", str(tmp_path / "no")]) == 2
    assert "an adapter is trained on with its own labels" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_bases_own_dropout_can_be_off(folders: Path, tmp_path: Path) -> None:
    """Without it a base with dropout trains as one that has none; with it, not."""
    losses: dict[str, list[float]] = {}
    for name, rate in (("wet", 0.4), ("dry", 0.0)):
        model = make_model("bert", layers=1)
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = rate
        model.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    for name, base, flag in (("off", "wet", "--no-base-dropout"), ("on", "wet", "--base-dropout"), ("none", "dry", "")):
        flags = ["--model", str(tmp_path / base), *([flag] if flag else []), *ONE_RATE, "--no-baseline"]
        assert run(folders, tmp_path / f"out-{name}", "bert", "classify", *flags, ranks="4") == 0
        losses[name] = [r["validation_loss"] for r in read_results(tmp_path / f"out-{name}")["runs"]]
    assert losses["off"] == pytest.approx(losses["none"], rel=1e-5)
    assert losses["on"] != pytest.approx(losses["none"], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "task", "flags", "plain"),
    [("bert", "classify", [], "classifier"), ("llama", "sft", ["--no-baseline"], "language_model")],
)
def test_figures_in_bf16_are_those_in_float32_but_for_rounding(
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
    task: str,
    flags: list[str],
    plain: str,
) -> None:
    monkeypatch.setattr(precision, "supported", lambda device: True)
    assert run(folders, tmp_path / "out", kind, task, *ONE_RATE, *flags, "--precision", "bf16") == 0
    found: dict[str, dict[str, float]] = {}
    for name, out in (("float32", request.getfixturevalue(plain)), ("bf16", tmp_path / "out")):
        results = read_results(out)
        assert any("ran in bfloat16" in note for note in results["notes"]) == (name == "bf16")
        assert not any("one after another, since" in note for note in results["notes"])
        found[name] = {one["name"]: one["validation_loss"] for one in results["runs"]}
    assert found["bf16"].keys() == found["float32"].keys()
    assert found["bf16"] != found["float32"]
    for one, value in found["float32"].items():
        assert found["bf16"][one] == pytest.approx(value, rel=0.03)
