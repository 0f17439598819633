"""How options of tasks are read from a command line: lists, with commas or spaces between their parts."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cyclopts import Group, Parameter, Token

DECIDING = Group("How it decides", sort_key=3)


def listed(
    parse: Callable[[str], Any],
    *,
    spaces: bool = True,
    by_flag: Mapping[str, Callable[[str], Any]] | None = None,
) -> Parameter:
    """A flag that takes a list: 1,2,4 or 1 2 4 or 1:64:x2.

    Args:
        parse: Reads it from one text.
        spaces: Whether parts may be given as separate words; not where the command has words of its own after it.
        by_flag: Flag -> what reads the text where this name of the flag is used.
    """

    def convert(kind: Any, tokens: Sequence[Token]) -> Any:
        # A list in a YAML file comes as several tokens.
        flag = (tokens[0].keyword or "") if tokens else ""
        return (by_flag or {}).get(flag, parse)(",".join(token.value for token in tokens))

    def shown(default: Any) -> Any:
        return None if default is None else ",".join(map(str, default))

    return Parameter(
        converter=convert,
        n_tokens=1,
        accepts_keys=False,
        consume_multiple=(1, sys.maxsize) if spaces else False,
        negative="",
        show_default=shown,
    )
