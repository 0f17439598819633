"""The mistakes that users make, on the command line and in Python: one clear line each, before anything is trained."""

import csv
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankwise
from rankwise.cli import main
from rankwise.errors import RankwiseError

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
GAP = X.clone()
GAP[3] = torch.nan


def loss(outputs, batch):
    return F.cross_entropy(outputs, batch[1], reduction="none")


IN_PYTHON = {
    "a rank as a text": ({"configs": ["4", 8]}, r'^The rank "4" is a text; give it as a whole number: 4\.$'),
    "a rank of 0": ({"configs": [0]}, r"^r is 0; a rank is a whole number of at least 1\.$"),
    "no ranks": ({"configs": []}, r"^The grid is empty; give at least one rank"),
    "no rows": ({"train": (X[:0], Y[:0])}, r"have \[0\] rows"),
    "a row": ({"train": (X[:1], Y[:1])}, r"^The training data has 1 row, so no test data can be cut off"),
    "unequal lengths": ({"train": (X, Y[:50])}, r"have \[50, 60\] rows; all must have the same number"),
    "wrong shapes": (
        {"train": (X[:, :3], Y)},
        r"^The model can't be run on rows of the training data, float32 \(\d, 3\), int64 \(\d,\): RuntimeError: mat1",
    ),
    "float labels": (
        {"train": (X, Y.float())},
        r"^The loss can't be computed from outputs \(float32 .*but got Float\.$",
    ),
    "labels out of range, rarely": (
        {"train": (X, torch.where(torch.arange(60) == 41, 2, Y)), "validation": (X, Y), "test": (X, Y)},
        r"^The loss can't be computed .* IndexError: Target 2 is out of bounds\.$",
    ),
    "a loss of torch": (
        {"loss": nn.CrossEntropyLoss()},
        r"A loss is called with outputs and the whole batch: lambda outputs, batch: F.cross_entropy",
    ),
    "a function of torch": ({"loss": F.cross_entropy}, r"A loss is called with outputs and the whole batch: lambda"),
    "NaN": ({"train": (GAP, Y)}, r"^The training data has NaN in 1 of 60 rows, first in row 3 \(counted from 0\)"),
    "peft's alpha": ({"lora_alpha": 16}, r'^sweep has no "lora_alpha"; give alpha in a LoRAConfig\.$'),
    "an argument misspelt": ({"tolerence": "1%"}, r'^sweep has no "tolerence"\. Did you mean "tolerance"\?$'),
}


@pytest.mark.filterwarnings("ignore:.*requires_grad")
@pytest.mark.parametrize("mistake", IN_PYTHON)
def test_in_python(mistake):
    given, message = IN_PYTHON[mistake]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    sound = {"model": model, "configs": [1], "train": (X, Y), "loss": loss, "plan": "grid", "progress": "quiet"}
    with pytest.raises(RankwiseError, match=message) as raised:
        rankwise.sweep(**{**sound, **given})
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"configs": [1.5]}, r"^1\.5 is no configuration; give a rank \(a whole number\)"),
        ({"model": "bert-base"}, r"^The model is a str \('bert-base'\); give a torch\.nn\.Module"),
        ({"lrs": "fast"}, r"^lrs is 'fast'; give one or more positive numbers"),
    ],
)
def test_values_of_another_type(given, message):
    sound = {"model": nn.Linear(4, 2), "configs": [1], "train": X, "loss": lambda o, b: o.sum(1), "progress": "quiet"}
    with pytest.raises(RankwiseError, match=message):
        rankwise.sweep(**{**sound, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_alpha": 16}, r'^LoRAConfig has no "lora_alpha"; give alpha\.$'),
        ({"use_dora": True}, r'^LoRAConfig has no "use_dora"; give variant="dora"\.$'),
        ({"alhpa": 16}, r'^LoRAConfig has no "alhpa"\. Did you mean "alpha"\?$'),
    ],
)
def test_settings_of_peft(given, message):
    with pytest.raises(RankwiseError, match=message):
        rankwise.LoRAConfig(**given)


def test_a_folder_with_results(tmp_path):
    (tmp_path / "file").write_text("")
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(RankwiseError, match="is a file; give a directory with out"):
        rankwise.sweep(model, [1], train=(X, Y), loss=loss, out=tmp_path / "file", progress="quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    pytest.importorskip("transformers")
    from text_models import make_model, make_tokenizer

    root = tmp_path_factory.mktemp("mistakes")
    make_model("bert").save_pretrained(root / "bert")
    make_tokenizer().save_pretrained(root / "bert")
    rows = [(f"one two {i}", "ab"[i % 2]) for i in range(30)]
    for name, header, lines in (
        ("train", ("text", "label"), rows),
        ("other-column", ("question", "topic"), rows),
        ("new-label", ("text", "label"), [*rows[:4], ("three", "zebra")]),
        ("one-label", ("text", "label"), [(text, "a") for text, _ in rows]),
        ("tiny", ("text", "label"), rows[:2]),
        ("empty", ("text", "label"), []),
    ):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    (root / "results").mkdir()
    (root / "results" / "mine.txt").write_text("")
    return root


ON_THE_COMMAND_LINE = {
    "a wrong column": (["--data", "other-column.csv"], r"columns? .*question, topic"),
    "a label only in the test": (["--test", "new-label.csv"], r'"zebra" \(line 6\)'),
    "one label": (["--data", "one-label.csv"], r"1 different labels; a classifier needs at least 2"),
    "tiny data": (["--data", "tiny.csv"], r"2 examples|too few|can't be cut|1 different labels"),
    "no data": (["--data", "empty.csv"], r"no examples"),
    "a file that is not there": (["--data", "nowhere.csv"], r"There is no file .*nowhere.csv"),
    "a wrong rank list": (["--ranks", "1;2"], r'"1;2" is no list of whole numbers; write them as 1,2,4'),
    "a rank of 0": (["--ranks", "0,1"], r"--ranks is \[0, 1\]"),
    "an unknown model": (["--model", "bert-base-uncasd"], r"bert-base-uncasd"),
    "an unknown task": (["--task", "clasify"], r'Did you mean "classify"\?'),
    "an option misspelt": (["--tolerence", "1%"], r"Did you mean --tolerance\?"),
    "a tolerance above the metric": (["--tolerance", "120 points"], r"tolerance"),
    "peft's alpha": (["--lora-alpha", "16"], r"Unknown option: --lora-alpha"),
    "an interrupted run that is none": (["--resume", "nowhere"], r"nowhere"),
    "labels as numbers without numbers": (["--labels", "number"], r'label "[ab]"; a number is needed'),
}


@pytest.mark.parametrize("mistake", ON_THE_COMMAND_LINE)
def test_on_the_command_line(place, tmp_path, capsys, monkeypatch, mistake):
    given, message = ON_THE_COMMAND_LINE[mistake]
    monkeypatch.chdir(place)
    sound = {"--model": "bert", "--task": "classify", "--data": "train.csv", "--out": str(tmp_path / "out")}
    sound |= dict(zip(given[::2], given[1::2], strict=True))
    if "--resume" in sound:
        del sound["--out"]
    capsys.readouterr()
    assert main(["sweep", *(part for pair in sound.items() for part in pair), "--quiet"]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("rankwise: ")
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()
