"""Sweeps of texts to imitate that are decided by the answers that each trained model writes."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from composed_options import compose

from rankwise.cli import main
from rankwise.errors import ConfigError, DataError
from rankwise.report import read_results
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.options import SweepOptions
from rankwise.tasks.text.train.answers import COLUMN
from rankwise.tasks.text.train.sft import ready_sft
from rankwise.tasks.text.use.evaluating.texts import evaluate_texts
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.served import load_adapted
from text_models import make_model, make_tokenizer

SAID = {"cat": "the cat sat on the mat", "dog": "the dog saw it"}


def rows(n: int, first: int = 0) -> list[dict[str, str]]:
    """Inputs with two answers each."""
    numbered = [(f"{kind} {i}", SAID[kind]) for i in range(first, first + n) for kind in ("cat", "dog")[i % 2 :][:1]]
    return [{"prompt": q, "completion": f" {a}{more}"} for q, a in numbered for more in ("", " one two three")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    for kind in ("llama", "t5"):
        model: Any = make_model(kind)
        model.save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    for name, content in (("train", rows(16)), ("test", rows(6, 100))):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return root


def options(place: Path, **more: Any) -> SweepOptions:
    data, test = (str(more.pop(name, place / f"{name}.jsonl")) for name in ("train", "test"))
    given: dict[str, Any] = {"metric": "bleu", **more}
    return compose(SweepOptions, model=str(place / "llama"), task="sft", data=data, test=test, device="cpu", **given)


def flags(place: Path, metric: str, out: Path, kind: str = "llama") -> list[str]:
    said = ["--model", str(place / kind), "--task", "sft", "--data", str(place / "train.jsonl"), "--quiet"]
    said += ["--test", str(place / "test.jsonl"), "--metric", metric, "--plan", "grid", "--seeds", "1", "--no-widen"]
    return [*said, "--ranks", "4", "--epochs", "4", "--batch-size", "8", "--lr", "3e-2", "--out", str(out)]


@pytest.mark.parametrize(
    ("kind", "metric", "figure"),
    [("llama", "bleu", "bleu"), pytest.param("t5", "rouge_l", "rougeL", marks=pytest.mark.slow)],
)
def test_a_sweep_says_what_evaluating_its_adapters_says(
    kind: str, metric: str, figure: str, place: Path, tmp_path: Path
) -> None:
    """Corpus figures of sacrebleu and rouge-score, on all references, from the files of the adapters."""
    assert main(["sweep", *flags(place, metric, tmp_path / "run", kind)]) == 0
    results = read_results(tmp_path / "run")
    assert results.metric.higher_is_better
    trained = [run for run in results.runs if run.adapter is not None]
    served = load_adapted([tmp_path / "run" / str(run.adapter) for run in trained], UseOptions(device="cpu"))
    longest = int("".join(c for c in next(n for n in results.notes if "up to" in n) if c.isdigit()))
    found = evaluate_texts(served, str(place / "test.jsonl"), generate=6, writing=Writing(max_new_tokens=longest))
    for run, name in zip(trained, served.names, strict=True):
        assert run.metric == pytest.approx(found.figures[name][figure], rel=1e-4)
    assert results.base.metric == pytest.approx(found.figures["base"][figure], rel=1e-4)
    assert results.base.metric is not None
    best = max(c.mean or 0.0 for c in results.configurations)
    assert best > results.base.metric, "something has learned to answer"
    assert results.answer is not None
    assert results.answer.by_loss
    assert results.answer.by_loss.metric == "loss a token"


def test_each_input_is_one_row_with_all_its_answers(place: Path) -> None:
    task = ready_sft(options(place))
    assert task.model_metric is not None
    test = task.splits.test
    assert len(test["input_ids"]) == 12
    assert task.model_metric.places(test).tolist() == list(range(0, 12, 2))
    rotation = task.splits.rotation
    assert rotation is not None
    assert rotation.pool[COLUMN].tolist() == list(range(32))
    assert task.notes[-1].startswith("BLEU of answers of up to")
    plain = ready_sft(options(place, metric=None))
    assert plain.model_metric is None
    assert COLUMN not in plain.splits.test


def test_what_can_not_be_judged_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="texts to imitate can be judged by loss, bleu, rouge_l, exact_match"):
        ready_sft(options(place, metric="accuracy"))
    with pytest.raises(DataError, match="No prompt leaves room for an answer of 127 tokens in the context of 128"):
        ready_sft(options(place, max_new_tokens=127))
    texts = tmp_path / "plain.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"the cat sat {n}"}) for n in range(30)))
    with pytest.raises(DataError, match="Plain texts have no prompts to answer"):
        ready_sft(options(place, train=texts, test=texts))
    for more in ({"metric": None}, {"metric": "loss"}):
        with pytest.raises(ConfigError, match="--max-new-tokens has no effect without a metric of written answers"):
            options(place, max_new_tokens=5, **more)
