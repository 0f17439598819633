"""How options of tasks are read from a command line: lists in one text."""

from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import Parameter, Token


def listed(parse: Callable[[str], Any]) -> Parameter:
    """A flag that takes a list in one text, as `parse` reads it: 1,2,4 or 1:64:x2."""

    def convert(kind: Any, tokens: Sequence[Token]) -> Any:
        # A list in a YAML file comes as several tokens.
        return parse(",".join(token.value for token in tokens))

    def shown(default: Any) -> Any:
        return None if default is None else ",".join(map(str, default))

    return Parameter(converter=convert, n_tokens=1, accepts_keys=False, negative="", show_default=shown)
