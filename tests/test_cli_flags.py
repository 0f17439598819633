"""Flags and their defaults, of every command, are those of `cli_flags.json`: a new one is added there, none is lost."""

import json
import re
from pathlib import Path

import pytest

from rankwise.cli import app

FLAGS = json.loads((Path(__file__).parent / "cli_flags.json").read_text())


def test_every_command_is_listed() -> None:
    assert [name for name in app if not name.startswith("-")] == list(FLAGS)


@pytest.mark.parametrize("command", FLAGS)
def test_flags_and_defaults(command: str) -> None:
    arguments = app[command].assemble_argument_collection(parse_docstring=True)
    found = {" ".join(one.names): _words(one.field_info.default) for one in arguments if one.names != ("*",)}
    assert found == FLAGS[command]


def _words(default: object) -> str:
    """A default as the list has it, where the day the tests run on is "today"."""
    dated = isinstance(default, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", default) is not None
    return "today" if dated else repr(default)


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_has_help(command: str) -> None:
    arguments = app[command].assemble_argument_collection(parse_docstring=True)
    assert [one.names for one in arguments if one.parse and one.names != ("*",) and not one.parameter.help] == []
