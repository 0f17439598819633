"""The house rules a reader relies on: imports in one direction, short files, no catch-all, no bare assert."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "rankwise"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = [
    "errors",
    "streams",
    "shown",
    "writing",
    "locking",
    "lora.tables",
    "lora.threads",
    "lora.collector",
    "lora.maths",
    "lora.inits",
    "lora.offloaded",
    "lora.layer_types",
    "lora.variants",
    "lora.config",
    "lora.modules",
    "lora.checkpoint",
    "lora.foreign",
    "lora.patterns",
    "lora.readers",
    "lora.ties",
    "lora.target",
    "lora.tokens",
    "lora.targets",
    "lora.report",
    "lora.whole",
    "lora.statistics",
    "lora.buffers",
    "lora.snapshot",
    "lora.grouped",
    "lora.calls",
    "lora.holding",
    "lora.adapter",
    "lora.complete",
    "lora.parameters",
    "lora.uses",
    "lora.reached",
    "lora.moved",
    "lora.attachable",
    "lora.base_state",
    "lora.whole_merge",
    "lora.inject",
    "lora.merge",
    "lora.named",
    "quantising",
    "files",
    "pack",
    "train",
    "sweeps",
    "report",
    "experiment",
    "api",
    "tasks",
    "cli",
]
"""Groups in the direction of imports (docs/design.md): a file may import its own group and what stands above."""

DOORS = {"": "tasks", "lora": "lora.named", "__main__": "cli"}
"""Files outside the groups, and the last group each may import: they only hand on names."""

MOST_LINES = 400


def module_of(path: Path) -> str:
    """`src/rankwise/lora/maths.py` -> `lora.maths`; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def group_of(module: str) -> str | None:
    return next((group for group in ORDER if module == group or module.startswith(group + ".")), None)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module (without the leading `rankwise.`) of every import from the package, lazy ones included."""
    package = ["rankwise", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "rankwise" or name.startswith("rankwise."):
                inside = name.removeprefix("rankwise").removeprefix(".")
                # `from rankwise.lora.maths import lora_delta` names a function: its module is what is imported.
                while inside and inside not in MODULES:
                    inside = inside.rpartition(".")[0]
                yield node.lineno, inside


def breaks(path: Path) -> list[str]:
    """The imports of a file that go against the order, in words."""
    module = module_of(path)
    group = group_of(module) or DOORS.get(module)
    if group is None:
        return [f"{module} stands in no group of ORDER; give it its place"]
    return [
        f"line {line}: {module} imports {name or 'rankwise'}"
        for line, name in imported(path)
        if ORDER.index(group_of(name) or DOORS.get(name, ORDER[-1])) > ORDER.index(group)
    ]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_in_one_direction(path):
    assert breaks(path) == []


def test_every_group_exists():
    assert [group for group in ORDER if group not in MODULES] == []


def test_an_import_from_below_is_found(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    files = {
        "errors.py": "import rankwise.sweeps\n",
        "train/loop.py": "def f():\n    from ..sweeps import g\n    from rankwise.errors import RankwiseError\n",
        "sweeps.py": "from rankwise.train.loop import f\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "MODULES", {"errors", "train", "train.loop", "sweeps"})
    assert breaks(tmp_path / "errors.py") == ["line 1: errors imports sweeps"]
    assert breaks(tmp_path / "train" / "loop.py") == ["line 2: train.loop imports sweeps"]
    assert breaks(tmp_path / "sweeps.py") == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def catches_everything(handler: ast.ExceptHandler) -> bool:
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(t is None or (isinstance(t, ast.Name) and t.id in {"Exception", "BaseException"}) for t in types)


def swallows(handler: ast.ExceptHandler) -> bool:
    """A handler that raises again at its end cleans up; it hides nothing."""
    last = handler.body[-1]
    return not (isinstance(last, ast.Raise) and last.exc is None)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_catch_all_and_no_bare_assert(path):
    found = [
        f"line {node.lineno}: {type(node).__name__}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
        or (
            isinstance(node, ast.ExceptHandler)
            and module_of(path) != "cli"
            and catches_everything(node)
            and swallows(node)
        )
    ]
    assert found == []
