"""Reading options from a command line: groups, lists with commas or spaces, whole numbers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from cyclopts import ArgumentCollection, Group, Parameter, Token

from rankwise.errors import ConfigError


def _check_whole_number(arguments: ArgumentCollection) -> None:
    """Refuse 2.5 where a whole number is needed; cyclopts would round it.

    Raises:
        ConfigError: One is given.
    """
    for argument in arguments:
        hints = {argument.hint, *get_args(argument.hint)}
        if int not in hints or float in hints or argument.parameter.converter is not None:
            continue
        for token in argument.tokens:
            if "." in token.value and not float(token.value).is_integer():
                raise ConfigError(f"{argument.name} is {token.value}; give a whole number.")


def flag_group(name: str, sort_key: int | None = None) -> Group:
    """A group of flags in the help, whose whole numbers are not rounded."""
    return Group(name, sort_key=sort_key, validator=_check_whole_number)


MAIN = flag_group("Main options", 0)
DATA_FLAGS = flag_group("Data", 1)
GRID = flag_group("What is tried", 2)
DECIDING = flag_group("How it decides", 3)
ADAPTER = flag_group("Adapters", 4)
TRAINING = flag_group("Training", 5)
TEXTS = flag_group("Texts", 6)
BASE_FLAGS = flag_group("Base", 7)
HOW = flag_group("How it runs", 10)


def listed(
    parse: Callable[[str], Any],
    *,
    spaces: bool = True,
    by_flag: Mapping[str, Callable[[str], Any]] | None = None,
    again_by: str = ",",
) -> Parameter:
    """A flag that takes a list: 1,2,4 or 1 2 4 or 1:64:x2.

    Args:
        parse: Reads it from one text.
        spaces: Whether parts may be given as separate words; not where further words follow on the command line.
        by_flag: Flag -> what reads the text where this name of the flag is used.
        again_by: What stands between the values of a flag that is given several times.
    """

    def convert(kind: Any, tokens: Sequence[Token]) -> Any:
        # A list in a YAML file comes as several tokens.
        flag = (tokens[0].keyword or "") if tokens else ""
        texts: list[str] = []
        for token in tokens:
            # Words of a flag that is given again count from 0 again.
            again = bool(texts) and token.index == 0
            texts.append(f"{(again_by if again else ',') if texts else ''}{token.value}")
        return (by_flag or {}).get(flag, parse)("".join(texts))

    def shown(default: Any) -> Any:
        return ",".join(",".join(one) if isinstance(one, tuple) else str(one) for one in default) if default else None

    return Parameter(
        converter=convert,
        n_tokens=1,
        accepts_keys=False,
        consume_multiple=(1, sys.maxsize) if spaces else False,
        negative="",
        show_default=shown,
    )
