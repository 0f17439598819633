"""Texts that each seed splits differently: equal inputs on one side, and figures that agree with a plain pass."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
from composed_options import compose

from rankwise.errors import ConfigError
from rankwise.experiment import Experiment, run_experiment
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.run.location import RunLocation
from rankwise.tasks.text.options import SweepOptions
from rankwise.tasks.text.run import make_text
from rankwise.train.events import Observers
from text_models import make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for kind in ("bert", "llama", "t5"):
        make_model(kind, layers=1).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    g = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(7, (4 + n % 19,), generator=g)) for n in range(60)]
    labelled = [{"text": f"{text} {n}", "label": "abc"[n % 3]} for n, text in enumerate(texts)]
    # Two answers to each prompt, three to every fifth.
    pairs = [{"prompt": f"{texts[n % 30]} {n % 30}", "completion": f" {WORDS[n % 7]} sat"} for n in range(60)]
    pairs += [{"prompt": pairs[n]["prompt"], "completion": " mat"} for n in range(0, 30, 5)]
    for name, rows in (("classify", labelled), ("sft", pairs)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def options_of(folder: Path, kind: str, task: str, rotate: bool = True, **more: Any) -> SweepOptions:
    more["deciding"] = Deciding(plan="grid", rotate=rotate)
    settings = {
        "epochs": 1,
        "batch_size": 8,
        "lr": (1e-2,),
        "ranks": (1, 2),
        "seeds": (0, 1),
        "baseline": False,
        **more,
    }
    return compose(SweepOptions, model=str(folder / kind), task=task, data=str(folder / f"{task}.jsonl"), **settings)


def made(options: SweepOptions) -> Experiment:
    with Observers() as shown:
        experiment = make_text(options, shown)
    experiment.check()
    return experiment


@pytest.mark.parametrize(("kind", "task"), [("bert", "classify"), ("llama", "sft"), ("t5", "sft")])
def test_every_seed_has_examples_of_its_own(folder: Path, tmp_path: Path, kind: str, task: str) -> None:
    options = options_of(folder, kind, task)
    experiments: list[Experiment] = []

    def make(shown: Observers, base: Mapping[str, Tensor] | None) -> Experiment:
        experiments.append(make_text(options, shown))
        return experiments[0]

    with Observers() as shown:
        place = RunLocation(directory=tmp_path / "out", config="", command="rankwise", resume_command="")
        results, _, _ = run_experiment(make, place, shown)
    arrays = np.load(tmp_path / "out" / "predictions.npz")
    rotation = experiments[0].problem.splits["data"].rotation
    assert rotation is not None
    ids = rotation.pool["input_ids"]
    prompts = [tuple(row.tolist()) for row in ids] if task == "classify" or kind == "t5" else None
    assert len({run["pack"] for run in results["runs"] if run["method"] == "lora"}) == 1
    seen: list[set[int]] = []
    for run in results["runs"]:
        if run["method"] != "lora":
            continue
        rows = arrays[f"rows/{run['name']}"]
        cut = rotation.cut(run["seed"])
        assert rows.tolist() == cut.validation.tolist()
        assert arrays[f"deciding/{run['name']}"].shape == rows.shape
        seen.append({*rows.tolist()})
        if prompts is not None:
            assert not {prompts[i] for i in rows} & {prompts[i] for i in cut.train.tolist()}
    assert not seen[0] & seen[1]


def test_the_pool_changes_no_batch(folder: Path) -> None:
    """Wider rows are cut to the width of their batch, wherever they lie."""
    for kind, task in (("bert", "classify"), ("llama", "sft")):
        experiment = made(options_of(folder, kind, task, rotate=False))
        splits, feed = experiment.problem.splits["data"], experiment.problem.feed
        for data in (splits.train, splits.validation):
            batch = feed.prepare({key: t[:3] for key, t in data.items()})
            assert batch["attention_mask"].any(0).all()
            width = batch["input_ids"].shape[1]
            assert width == int(batch["attention_mask"].sum(1).max())
            for key in ("position_ids", "labels") if kind == "llama" else ():
                assert batch[key].shape[1] == width


def test_rows_that_hold_several_examples_are_not_cut(folder: Path) -> None:
    with pytest.raises(ConfigError, match="rotate is True and the validation data is fixed"):
        made(options_of(folder, "llama", "sft", join=True, epochs=1))
    assert not made(options_of(folder, "llama", "sft", rotate=False, join=True, epochs=1)).can_rotate


def test_an_input_with_more_examples_than_a_cut_is_not_cut(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "cat", "completion": f" {n}"} for n in range(30)]
    rows += [{"prompt": f"sat {n}", "completion": " mat"} for n in range(30)]
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = replace(options_of(folder, "llama", "sft", rotate=False), data=str(tmp_path / "sft.jsonl"))
    assert not made(options).can_rotate
