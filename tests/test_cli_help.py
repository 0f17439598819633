"""What the command line says of itself, and how it reads lists."""

import re

import pytest
import yaml

import rankwise
from rankwise.cli import app, main
from rankwise.loggers.table import LOGGERS
from rankwise.lora.inits import INITS
from rankwise.lora.variants import VARIANTS
from rankwise.pack.step.table import OPTIMISERS
from rankwise.tasks.flags import MAIN
from rankwise.train.schedules import SCHEDULES

COMMANDS = [name for name in app if not name.startswith("-")]
TRAINING = ("digits", "sweep", "train")
TEXTS = ["--model", "m", "--task", "classify", "--data", "d.csv"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return said(capsys, *arguments)


def test_alone_it_says_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    assert "Start with a demonstration of half a minute: rankwise digits" in text
    assert all(name in text for name in COMMANDS)
    assert "--install-completion" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_begins_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = help_of(capsys, command, "--help")
    assert f"Example: rankwise {command} " in text
    assert text.index("Example:") < text.index("╭")


@pytest.mark.parametrize("command", ["merge", "predict", "evaluate", "generate"])
def test_what_a_command_alone_has_comes_first(capsys: pytest.CaptureFixture[str], command: str) -> None:
    boxes = re.findall(r"╭─ (.*?) ─+╮", help_of(capsys, command, "--help"))
    assert boxes == [*([] if command == "merge" else ["Arguments"]), "Options", "Texts", "Base"]


def test_choices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r"[│\s]+", " ", help_of(capsys, "sweep", "--help"))
    for flag, table in (
        ("variant", VARIANTS), ("optimiser", OPTIMISERS), ("init", INITS), ("log-to", LOGGERS), ("schedule", SCHEDULES)
    ):  # fmt: skip
        (words,) = re.findall(rf"--{flag} STR[. ](.*?) (?:--|╰)", text)
        assert all(name in words for name in table), flag
    assert "[default: ]" not in text


@pytest.mark.parametrize("command", TRAINING)
def test_ten_main_options_come_first(capsys: pytest.CaptureFixture[str], command: str) -> None:
    boxes = re.findall(r"╭─ (.*?) ─+╮\n(.*?)╰", help_of(capsys, command, "--help"), re.DOTALL)
    assert boxes[0][0] == MAIN.name
    assert len(re.findall(r"^│[ *]+--", boxes[0][1], re.MULTILINE)) == 10
    assert len(boxes) > 2


def test_merge_has_only_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "merge", "--help")
    for flag in ("--max-length", "--loss-on", "--chat ", "--separator"):
        assert flag not in text
    assert main(["merge", "x", "--out", "y", "--loss-on", "all"]) == 2
    assert "Unknown option: --loss-on" in capsys.readouterr().err


@pytest.mark.parametrize("ranks", [["1,2,4"], ["1", "2", "4"], ["1, 2, 4"], ["1 2 4"], ["1:4:x2"], ["1,2", "4"]])
@pytest.mark.parametrize("command", TRAINING[:2])
def test_lists_with_commas_or_spaces(capsys: pytest.CaptureFixture[str], command: str, ranks: list[str]) -> None:
    texts = [] if command == "digits" else TEXTS
    text = said(capsys, command, "--ranks", *ranks, "--lr", "1e-3", "1e-4", *texts, "--print-config")
    settings = yaml.safe_load(text)[command]
    assert (settings["ranks"], settings["lr"]) == ([1, 2, 4], [1e-3, 1e-4])


def test_seeds_mean_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for command in TRAINING[:2]:
        texts = [] if command == "digits" else TEXTS
        settings = yaml.safe_load(said(capsys, command, *texts, "--seeds", "3", "--print-config"))[command]
        assert settings["seeds"] == [0, 1, 2]
    assert main(["train", *TEXTS, "--seeds", "3", "--print-config"]) == 2
    assert "trains one adapter, and --seeds names 3" in capsys.readouterr().err
    for flags in (["--seed", "7"], ["--seeds", "7:7"], ["--seeds", "7,"]):
        settings = yaml.safe_load(said(capsys, "train", *TEXTS, *flags, "--print-config"))["train"]
        assert settings["seeds"] == [7]


def test_public_names() -> None:
    names = [name for name in dir(rankwise) if not name.startswith("__")]
    assert names == sorted(rankwise.__all__)
    assert issubclass(rankwise.RankwiseError, Exception)
