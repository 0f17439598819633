"""Settings from a YAML file are what is written there, and whole numbers are not rounded."""

from pathlib import Path

import pytest
import yaml

from rankwise.cli import main
from rankwise.cli.app import app
from test_cli import refused

BASE = "sweep:\n  model: bert\n  task: classify\n  data: a.csv\n"


def printed(path: Path, text: str, capsys: pytest.CaptureFixture[str], command: str = "sweep") -> dict[str, object]:
    path.write_text(text, encoding="utf-8")
    assert main([command, "--config", str(path), "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)[command]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("ranks: 1:8", "ranks", [1, 2, 3, 4, 5, 6, 7, 8]),  # 68 in YAML 1.1
        ("ranks: 2:10:2", "ranks", [2, 4, 6, 8, 10]),
        ("ranks: [010, 4]", "ranks", [10, 4]),
        ("seeds: 10:14", "seeds", [10, 11, 12, 13, 14]),
        ("seeds: 3", "seeds", [0, 1, 2]),
        ("seeds: [3]", "seeds", [3]),
        ("lr: [1e-4, 0.001]", "lr", [1e-4, 1e-3]),
        ("baseline: no", "baseline", False),
        ("epochs: 2.0", "epochs", 2),
        ("tolerance: 1%", "tolerance", "1%"),
    ],
)
def test_values_are_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, name: str, value: object
) -> None:
    assert printed(tmp_path / "a.yaml", f"\ufeff{BASE}  {line}\n", capsys)[name] == value


def test_a_file_is_of_its_command_line_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(tmp_path / "a.yaml", BASE + "  plan: grid\n", capsys)["plan"] == "grid"
    _, bound, _ = app.parse_args("sweep --model bert --task classify --data a.csv --max-minutes 5")
    assert bound.arguments["options"].deciding.plan == "auto"


def test_a_date_stays_a_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = BASE.replace("classify", "sft") + "  date: 2026-11-01\n"
    assert printed(tmp_path / "a.yaml", text, capsys)["date"] == "2026-11-01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "  ranks: 1\n  ranks: 2\n", '"ranks" is there twice'),
        (BASE + "  batch_size: 1\n  batch-size: 2\n", 'has "batch-size" twice, with "-" and with "_"'),
        (BASE + "  config: b.yaml\n", 'has "config", which is only a command-line flag'),
        ("digits:\n  ranks: [1]\n", "has settings of digits and none of sweep, so nothing in it would be used"),
        (BASE + "  epochs: 2.5\n", "--epochs is 2.5; give a whole number."),
    ],
)
def test_files_that_say_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert message in refused(capsys, "sweep", "--config", str(tmp_path / "a.yaml"), "--print-config")


@pytest.mark.parametrize(
    ("command", "flag"), [("digits", "--epochs"), ("digits", "--max-runs"), ("evaluate", "--limit")]
)
def test_whole_numbers_are_not_rounded(capsys: pytest.CaptureFixture[str], command: str, flag: str) -> None:
    more = ["--data", "a.csv"] if command == "evaluate" else ["--print-config"]
    assert f"{flag} is 2.5; give a whole number." in refused(capsys, command, *more, flag, "2.5")
