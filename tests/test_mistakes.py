"""The mistakes that users make, on the command line and in Python: one clear line each, before anything is trained."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankwise
from rankwise.cli import main
from rankwise.errors import RankwiseError
from rankwise.results import read_results
from rankwise.show.live import Progress
from rankwise.train.events import EpochEnded

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
GAP = X.clone()
GAP[3] = torch.nan


def loss(outputs, batch):
    return F.cross_entropy(outputs, batch[1], reduction="none")


IN_PYTHON = {
    "a rank as a text": ({"configs": ["4", 8]}, r'^The rank "4" is a text; give it as a whole number: 4\.$'),
    "ranks as a text": ({"configs": "1,2"}, r'^The ranks "1,2" are a text; give them as whole numbers: \[1, 2\]\.$'),
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


TRAINS = ["--model", "bert", "--task", "classify", "--data", "train.csv", "--ranks", "1,2", "--lr", "1e-3"]
TRAINS += ["--no-baseline", "--plan", "grid", "--seeds", "1", "--epochs", "2", "--batch-size", "8"]


@pytest.mark.parametrize("piped", ["stderr", "both"])
def test_without_a_terminal(place, tmp_path, capfd, monkeypatch, piped):
    """Where nobody watches, progress is lines of plain text, and the answer stands alone on standard output."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    given = ["--json"] if piped == "stderr" else []
    assert main(["sweep", *TRAINS, "--out", str(tmp_path / "out"), *given]) == 0
    said = capfd.readouterr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said.err + said.out), "no escapes, no carriage returns"
    assert re.search(r"^Training 3 runs$", said.err, re.MULTILINE)
    ended = re.findall(
        r"^\[\d+:\d\d\] (\w+) .*finished at step \d+, .*loss \S+, .*accuracy \S+$", said.err, re.MULTILINE
    )
    assert sorted(ended) == ["head", "r1", "r2"]
    if given:
        assert list(json.loads(said.out))
    else:
        assert max(map(len, said.out.splitlines())) <= max(80, len(str(tmp_path)) + 70)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Press Ctrl-C after the first epoch of each sweep, until undone."""
    undone = Progress.on_event

    def pressed(self, event):
        undone(self, event)
        if isinstance(event, EpochEnded):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    monkeypatch.setattr(Progress, "on_event", pressed)
    yield lambda: monkeypatch.setattr(Progress, "on_event", undone)
    signal.signal(signal.SIGINT, before)


def test_interrupted_on_the_command_line(place, tmp_path, capsys, monkeypatch, ctrl_c):
    monkeypatch.chdir(place)
    out = tmp_path / "a run"
    assert main(["sweep", *TRAINS, "--out", str(out)]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("Interrupted; resume with: rankwise sweep --resume ")
    ctrl_c()
    # Another run goes its way, the printed command takes the first one up, and both end alike.
    assert main(["sweep", *TRAINS, "--out", str(tmp_path / "other"), "--quiet"]) == 0
    assert main(shlex.split(line.partition("resume with: rankwise ")[2])) == 0
    ours, theirs = (read_results(folder) for folder in (out, tmp_path / "other"))
    assert ours.complete
    assert [run.validation_metric for run in ours.runs] == [run.validation_metric for run in theirs.runs]


def test_interrupted_in_python(tmp_path, ctrl_c):
    def sweep(**given):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        return rankwise.sweep(
            model, [1, 2], train=(X, Y), loss=loss, baseline=False, lrs=[1e-2], plan="grid", seeds=1,
            training=rankwise.Training(epochs=3), progress="plain", **given,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt) as raised:
        sweep(out=tmp_path / "a")
    assert str(raised.value) == (f"Interrupted; resume with: rankwise.sweep(..., out='{tmp_path}/a', resume=True)")
    ctrl_c()
    resumed, whole = sweep(out=tmp_path / "a", resume=True), sweep()
    assert resumed.results.complete
    assert [run.metric for run in resumed.results.runs] == [run.metric for run in whole.results.runs]


def test_a_reader_that_has_read_enough(place, tmp_path):
    """`rankwise ... | head -1`: no traceback, and an exit code that says so."""
    command = [sys.executable, "-m", "rankwise", "sweep", *TRAINS, "--print-config"]
    source = str(Path(rankwise.__file__).parents[1])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": source}}
    with subprocess.Popen(command, cwd=place, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
