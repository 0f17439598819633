"""`from_clone.py` pastes what README shows, and replaces nothing that it doesn't name."""

from pathlib import Path

import from_clone
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_blocks_go_from_installing_to_a_prediction() -> None:
    torch, install, *rankwise = from_clone.commands_of(README)
    assert torch.startswith("pip install torch --index-url https://download.pytorch.org/")
    assert install == 'pip install ".[text]"'
    assert [command.split()[1] for command in rankwise] == ["sweep", "predict"]
    assert f" {from_clone.MODEL} " in rankwise[0]
    assert "#" not in "".join([torch, install, *rankwise])


def test_what_is_replaced_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    commands = from_clone.commands_of(README)
    assert from_clone.replaced(commands, None, None) == commands
    assert capsys.readouterr().out == ""
    changed = from_clone.replaced(commands, "pip install torch==1", Path("/model"))
    assert changed[0] == "pip install torch==1"
    assert changed[1] == commands[1]
    assert " /model " in changed[2]
    said = capsys.readouterr().out
    assert all(command in said for command in (commands[0], commands[2], *changed[:1]))
