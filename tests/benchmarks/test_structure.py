"""Functions stay short, and take few parameters."""

from pathlib import Path

from structure import longest_functions, most_parameters, sources_of

import rankwise

SOURCES = sources_of(Path(rankwise.__file__).parent)


def test_functions_are_short() -> None:
    assert [(n, name) for n, name in longest_functions(SOURCES) if n > 60] == []


def test_functions_take_few_parameters() -> None:
    # A sweep has many settings, and a call in Python has no other place for them.
    assert [(n, name) for n, name in most_parameters(SOURCES) if n > 10 and name != "api.py: sweep"] == []
