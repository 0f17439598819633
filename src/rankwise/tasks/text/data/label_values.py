"""Labels as data hold them: names, numbers, lists of names, and rows of 0 and 1 with a place for each label."""

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from rankwise.tasks.text.data.examples import Label
from rankwise.tasks.text.data.messages import WrongValueError


def label_of(value: Any) -> Label:
    """The label of an example: a name, a number, or several names.

    Raises:
        WrongValueError: It is none of these.

    Examples:
        >>> label_of(True), label_of([True, 2.0, " b "]), label_of(3), label_of(0.5)
        ('true', ('true', '2', 'b'), '3', 0.5)
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _names(value)
    if isinstance(value, float | Decimal):
        return float(value)
    return _name(value, "the label")


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    """Several names; numbers in a list are names only where they can't be scores or a value for each place."""
    numbers = [value for value in values if isinstance(value, int | float | Decimal)]
    if score := next((n for n in numbers if math.isfinite(n) and n != int(n)), None):
        raise WrongValueError(f"the label is a list with the number {score}; a row of scores is no list of labels")
    if twice := next((n for n, count in Counter(numbers).items() if count > 1), None):
        raise WrongValueError(
            f"the label is a list that has the number {twice} twice, so it is a row of values and no list of labels; "
            "of rows only those of 0 and 1 can be used"
        )
    return tuple(dict.fromkeys(_name(value, "a label in the list") for value in values))


def _name(value: Any, what: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise WrongValueError(f"{what} is {value}, not a finite number")
        # 3.0 is how a table's column of whole numbers with a gap comes.
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        if value.strip():
            return value.strip()
        raise WrongValueError(f"{what} is empty")
    if value is None:
        raise WrongValueError(f"{what} is missing")
    raise WrongValueError(f"{what} is a {type(value).__name__}; it is a text, a number, or a list of these")


_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|True|False)"""
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_ITEM}\s*(?:,\s*{_ITEM}\s*)*(?:,\s*)?)?\]", re.DOTALL)
"""A list as Python writes it, which is how pandas writes lists into a CSV file. Two texts without a comma between them,
as numpy writes them, would be read as one."""


def several_of(value: Any) -> Any:
    """Several labels, where a CSV file holds them as a list in JSON or in Python; any other text is one label.

    Raises:
        WrongValueError: It begins as a list and is none.

    Examples:
        >>> several_of('["a", "b"]'), several_of("['a', 'b']"), several_of("a")
        (['a', 'b'], ['a', 'b'], 'a')
    """
    if not isinstance(value, str) or not value.strip().startswith("["):
        return value
    text = value.strip()
    try:
        return json.loads(text)
    except ValueError:
        if _PYTHON_LIST.fullmatch(text):
            return ast.literal_eval(text)
    raise WrongValueError('the label begins as a list and is none; several labels are written as ["a", "b"]')


def are_lists(values: Iterable[Any]) -> bool:
    """Whether every label is a text that looks like a list.

    Examples:
        >>> are_lists(["['a']", "[]"]), are_lists(["a", "['a']"]), are_lists([["a"]])
        (True, False, False)
    """
    texts = [value.strip() if isinstance(value, str) else "" for value in values]
    return bool(texts) and all(text.startswith("[") and text.endswith("]") for text in texts)


def count_places(values: Sequence[Any]) -> int | None:
    """The number of labels if every value is a row of 0 and 1 with a place for each label; else None.

    Rows of one length are read as positions, not as lists of the names 0 and 1: as names, all of them would hold one
    label twice, or the same two.

    Examples:
        >>> count_places([[1, 0, 1], [0.0, 1.0, 0.0]]), count_places([[0, 1], [1]]), count_places(["a"])
        (3, None, None)
    """
    lengths = {len(v) if isinstance(v, Sequence) and not isinstance(v, str | bytes) else 0 for v in values}
    if len(lengths) != 1 or max(lengths) < 2:
        return None
    numbers = all(isinstance(item, int | float) and item in (0, 1) for value in values for item in value)
    return lengths.pop() if numbers else None


def place_names(n: int) -> tuple[str, ...]:
    """Names of labels that are places in a row.

    Examples:
        >>> place_names(3)
        ('0', '1', '2')
    """
    return tuple(map(str, range(n)))


def places_of_ones(value: Any, n: int) -> Label:
    """The labels of a row of 0 and 1: the numbers of the places that hold 1.

    Raises:
        WrongValueError: It is no such row, or of another length.

    Examples:
        >>> places_of_ones([1, 0, 1], 3)
        ('0', '2')
    """
    if count_places([value]) != n:
        raise WrongValueError(f"the label is no row of {n} numbers 0 and 1")
    return tuple(str(i) for i, item in enumerate(value) if item)
