"""The application that commands register with, and what reads their flags."""

from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import App, Group, Parameter, Token

EXIT_OK, EXIT_MISTAKE, EXIT_DIVERGED, EXIT_INTERRUPTED = 0, 2, 3, 130

app = App(
    name="rankwise",
    help="Find the smallest LoRA that does the job: many ranks trained together over one frozen base.",
    help_flags=["--help", "-h"],
    version_flags=["--version"],
)

HOW = Group("How it runs", sort_key=2)


def reader(parse: Callable[[str], Any]) -> Any:
    """Make a cyclopts converter of a parser for one text; a list in a YAML file comes as several tokens."""

    def convert(kind: Any, tokens: Sequence[Token]) -> Any:
        return parse(",".join(token.value for token in tokens))

    return convert


def listed(parse: Callable[[str], Any]) -> Parameter:
    """A flag that takes a list in one text: 1,2,4 or 1:64:x2."""
    return Parameter(converter=reader(parse), n_tokens=1, accepts_keys=False, negative="")
