"""URLs on the command line: run directories and adapters on object stores, as local folders."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from rankwise.cli.app import app
from rankwise.errors import ConfigError
from rankwise.remote.store import url_of

TRAINING = ("sweep", "train", "digits")
"""Commands whose --out is a run directory."""


def with_local_folders(arguments: Sequence[str], copies: ExitStack) -> list[str]:
    """Replace URLs of runs and adapters that a command reads by local copies, which last as long as `copies`.

    (`--out` of a command that trains, and the directory of `work`, are copied by the command itself.)

    Args:
        arguments: The command line.
        copies: Closed when the command has ended: what it has changed is then in the store.

    Raises:
        BusyError: Another process works on the run.
        ConfigError: A file would be written to a URL.
        OutputError: The store can't be read.
    """
    arguments = list(arguments)
    if not any("://" in argument for argument in arguments) or not arguments or arguments[0] == "work":
        return arguments
    from rankwise.sweeps.storage.working_copy import read_copy, run_copy

    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        value = value if equals else next(iter(arguments[i + 1 : i + 2]), "")
        if flag == "--resume" and (url := url_of(value)) and "://" in value:
            folder = str(copies.enter_context(run_copy(url, continues=True)))
            arguments[i : i + (1 if equals else 2)] = ["--resume", folder]
        elif flag == "--out" and "://" in value and arguments[0] not in TRAINING:
            raise ConfigError(f"--out of rankwise {arguments[0]} is {value}; it takes a path of this machine.")
    if arguments[0] in TRAINING:
        return arguments
    reports = arguments[0] == "report"
    for url in _positional(arguments):
        copy = read_copy(url, writes_report=reports, adapters=reports and "--subspaces" in arguments)
        folder = str(copies.enter_context(copy))
        arguments = [folder if "://" in argument and url_of(argument) == url else argument for argument in arguments]
    return arguments


def _positional(arguments: Sequence[str]) -> list[str]:
    """The URLs among the paths that a command takes by their place."""
    _, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    urls: list[str] = []
    for value in bound.args:
        for path in cast("Iterable[object]", value) if isinstance(value, tuple | list) else (value,):
            if isinstance(path, Path) and (url := url_of(path)) is not None:
                urls.append(url)
    return list(dict.fromkeys(urls))
