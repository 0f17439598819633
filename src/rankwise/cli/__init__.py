"""The command line: commands read flags, call the code that does the work, and print. They have no other logic.

One file a command; nothing heavy is loaded before a command runs, so `--help` is quick.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import CycloptsError

from rankwise.cli.app import EXIT_INTERRUPTED, EXIT_MISTAKE, EXIT_OK, EXIT_PIPE, app
from rankwise.cli.combine import combine
from rankwise.cli.compare import compare
from rankwise.cli.continuing import settings_of
from rankwise.cli.digits import digits
from rankwise.cli.evaluate import evaluate
from rankwise.cli.extract import extract
from rankwise.cli.generate import generate
from rankwise.cli.inspect import inspect
from rankwise.cli.merge import merge
from rankwise.cli.predict import predict
from rankwise.cli.push import push
from rankwise.cli.remote import with_local_folders
from rankwise.cli.report import report
from rankwise.cli.resize import resize
from rankwise.cli.sweep import sweep
from rankwise.cli.train import train
from rankwise.cli.work import work
from rankwise.errors import ConfigError, RankwiseError, flags_named
from rankwise.shown import printable
from rankwise.tasks.reading import parse_numbers

if TYPE_CHECKING:
    from cyclopts.config import Dict

__all__ = [
    "combine",
    "compare",
    "digits",
    "evaluate",
    "extract",
    "generate",
    "inspect",
    "main",
    "merge",
    "predict",
    "push",
    "report",
    "resize",
    "sweep",
    "train",
    "work",
]
"""The commands (importing one registers it), and what runs them."""


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that must be known before the others are read."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def _continued(directory: Path, arguments: Sequence[str]) -> "Dict":
    """The settings of the run in a directory, with the seeds and ranks that are added to it.

    Raises:
        ConfigError: What is added is no number, or can't be added.
        CheckpointError: There is no such run.
    """
    from rankwise.cli.settings_file import as_config

    seeds, ranks = _value_of("--more-seeds", arguments), _value_of("--more-ranks", arguments)
    try:
        number = None if seeds is None else int(seeds)
    except ValueError:
        raise ConfigError(f'--more-seeds is "{seeds}"; give the number of seeds to add, such as 3.') from None
    added = None if ranks is None else parse_numbers(ranks)
    return as_config(settings_of(directory, number, added), directory)


def _from_file(path: Path, arguments: Sequence[str]) -> "Dict":
    """The settings in a --config file.

    Raises:
        ConfigError: They can't be used.
    """
    from rankwise.cli.settings_file import read_settings

    commands = [name for name in app if not name.startswith("-")]
    return read_settings(path, next(iter(arguments), None), commands)


_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)


def join_values(arguments: Sequence[str]) -> list[str]:
    """Join a value that begins with a hyphen and is no option's name to the option before it.

    Examples:
        >>> join_values(["--tolerance", "-1%", "--text", "- my card?", "--quiet", "--seeds", "-1"])
        ['--tolerance=-1%', '--text=- my card?', '--quiet', '--seeds=-1']
    """
    read: list[str] = []
    for argument in arguments:
        is_value = argument.startswith("-") and argument != "--" and not _OPTION.fullmatch(argument)
        if is_value and read and read[-1].startswith("--") and "=" not in read[-1] and read[-1] != "--":
            read[-1] += f"={argument}"
        else:
            read.append(argument)
    return read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0; 2 a user's mistake (one line); 3 finished, with runs that diverged or failed; 130 interrupted;
        141 standard output was closed before all was printed.
    """
    arguments = join_values(sys.argv[1:] if arguments is None else arguments)
    try:
        with flags_named(), ExitStack() as copies:
            arguments = with_local_folders(arguments, copies)
            copies.callback(setattr, app, "config", ())  # of this command line alone
            resume, path = _value_of("--resume", arguments), _value_of("--config", arguments)
            if resume is not None:
                app.config = (_continued(Path(resume), arguments),)
            else:
                app.config = () if path is None else (_from_file(Path(path), arguments),)
            result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_OK
    except RankwiseError as error:
        print(f"rankwise: {printable(str(error))}", file=sys.stderr)
    except CycloptsError as error:
        print(f"rankwise: {printable(_one_line(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        print("rankwise: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `| head` has read enough. What is still in the buffer must not be written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    return EXIT_MISTAKE


def _one_line(error: Exception) -> str:
    # A converter's own message is the clearest there is.
    cause = error.__cause__
    return " ".join(str(cause if isinstance(cause, RankwiseError) else error).split())
