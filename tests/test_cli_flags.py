"""Flags and their defaults, of every command, are those of `cli_flags.json`: a new one is added there, none is lost."""

import json
from pathlib import Path

import pytest

from rankwise.cli import app

FLAGS = json.loads((Path(__file__).parent / "cli_flags.json").read_text())


def test_every_command_is_listed() -> None:
    assert [name for name in app if not name.startswith("-")] == list(FLAGS)


@pytest.mark.parametrize("command", FLAGS)
def test_flags_and_defaults(command: str) -> None:
    arguments = app[command].assemble_argument_collection(parse_docstring=True)
    found = {" ".join(one.names): repr(one.field_info.default) for one in arguments if one.names != ("*",)}
    assert found == FLAGS[command]


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_has_help(command: str) -> None:
    arguments = app[command].assemble_argument_collection(parse_docstring=True)
    assert [one.names for one in arguments if one.parse and one.names != ("*",) and not one.parameter.help] == []
