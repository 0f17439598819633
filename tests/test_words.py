"""Names and sentences are plain English: no word of the old private dialect comes back."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "rankwise"
FILES = sorted(PACKAGE.rglob("*.py"))

NAMES = frozenset(
    (  # noqa: SIM905
        "whole whole_rate whole_rate_for Whole Own Swept Found Expected _told Running Alone _look _parting _differs "
        "Part parts_of row_of Place Beginning now take_up carry_out run_in Maker foresee foretell _foretelling Watch "
        "within together go_on Board How how Ready Adapted write_beside needed_for turned only uses reached moved "
        "named attachable grouped Filed Settled Placed Every told said kept"
    ).split()
)
"""What no class, function, module or field is called: a participle or an adverb says nothing of what a thing is."""

PHRASES = (
    "gone on with",
    "goes on with",
    "is said",
    "are said",
    "what it gave",
    "in a way of its own",
    "in a way of their own",
    "without without",
    "loses its end",
    "beside their marks",
    "on one spot",
    "held against",
    "what came of",
    "start anew",
    "at the most",
    "told apart",
    "can't be told",
    "as said",
)
"""What stands in no string or comment of the package."""

ROWS = (
    "lora/layer/per_row.py",
    "lora/active.py",
    "pack",
    "quantising.py",
    "report",
    "show",
    "sweeps",
    "tables.py",
    "tasks",
    "train",
)
"""Where `row` is a name: a row of a batch, of a data file or of a printed table; never a type of layer."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every class, function and field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.lineno, field.target.id


def strings_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string: docstrings, messages and the constant parts of formatted ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split()).lower()


def faults(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    found = [f"module {path.stem}"] if path.stem in NAMES else []
    found += [f"line {line}: {name}" for line, name in names_in(tree) if name in NAMES]
    found += [f'line {line}: "{p}"' for line, text in strings_in(tree) for p in PHRASES if p in text]
    if not name_of(path).startswith(ROWS):
        found += [
            f"line {node.lineno}: row"
            for node in ast.walk(tree)
            if (isinstance(node, ast.Name) and node.id == "row") or (isinstance(node, ast.arg) and node.arg == "row")
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_words(path):
    assert faults(path) == []


def test_an_old_word_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "kept.py"
    path.write_text('class How:\n    whole: int\n\ndef told(row):\n    """It is\n    said."""\n')
    assert faults(path) == [
        "module kept",
        "line 1: How",
        "line 2: whole",
        "line 4: told",
        'line 5: "is said"',
        "line 4: row",
    ]


COMMANDS = "cli/"
"""Commands are named like the public functions that they call."""

ACCURACY = {"tasks/digits/digits.py", "tasks/text/score/metrics.py"}
"""One meaning for two kinds of targets."""


def test_no_public_class_or_function_is_defined_twice():
    modules: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, set()).add(name_of(path))
    twice = {name: {m for m in found if not m.startswith(COMMANDS)} for name, found in modules.items()}
    found = {name: found for name, found in twice.items() if len(found) > 1 and found != ACCURACY}
    assert not found, found
