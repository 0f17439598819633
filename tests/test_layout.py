"""The house rules a reader relies on: imports in one direction, short files, no catch-all, no bare assert."""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "rankwise"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = [
    "errors",
    "requirements",
    "streams",
    "shown",
    "writing",
    "remote",
    "results",
    "locking",
    "tables",
    "collector",
    "lora.maths",
    "lora.inits",
    "lora.offloaded",
    "lora.layer_types",
    "lora.variants",
    "lora.config",
    "lora.targets",
    "lora.report",
    "lora.layer",
    "lora.trained_modules",
    "lora.adapter",
    "lora.base",
    "lora.checks",
    "lora.parameters",
    "lora.precheck",
    "lora.trained_merge",
    "lora.inject",
    "lora.merge",
    "lora.active",
    "quantising",
    "adapter_files.findings",
    "adapter_files.base",
    "adapter_files.peft",
    "adapter_files.tensor_file",
    "adapter_files.both_files",
    "adapter_files.placing",
    "adapter_files.token_rows",
    "adapter_files.folder",
    "adapter_files.updates",
    "adapter_files.fit",
    "adapter_files.model",
    "adapter_files.swap",
    "adapter_files.loralib",
    "adapter_files.merged",
    "surgery",
    "pack.batches",
    "pack.groups",
    "pack.memory",
    "pack.precision",
    "pack.noise",
    "pack.modes",
    "pack.optimisers",
    "pack.member",
    "pack.resolved",
    "pack.stacks",
    "pack.layers",
    "pack.model",
    "pack.counts",
    "pack.faults",
    "pack.losses",
    "pack.step",
    "pack.pack",
    "train.data",
    "train.outcome",
    "train.events",
    "train.schedules",
    "train.settings",
    "train.machine",
    "train.crossfit",
    "train.evaluation",
    "train.precheck",
    "train.state",
    "train.stopping",
    "train.prefix",
    "train.checkpoints",
    "train.loop",
    "sweeps.choose",
    "sweeps.model_metric",
    "sweeps.problem",
    "sweeps.attaching",
    "sweeps.measure",
    "sweeps.floors",
    "sweeps.candidates",
    "sweeps.plan",
    "sweeps.provenance",
    "sweeps.judged",
    "sweeps.record",
    "sweeps.squeezing",
    "sweeps.storage",
    "sweeps.base_figures",
    "sweeps.run",
    "sweeps.caching",
    "sweeps.arguments",
    "report",
    "experiment",
    "show",
    "loggers",
    "api",
    "tasks.flags",
    "tasks.reading",
    "tasks.settings",
    "tasks.options",
    "tasks.digits",
    "tasks.text.extra",
    "tasks.text.sidecar",
    "tasks.text.groups",
    "tasks.text.idle",
    "tasks.text.options",
    "tasks.text.read",
    "tasks.text.data",
    "tasks.text.encode",
    "tasks.text.model",
    "tasks.text.prompting",
    "tasks.text.trained",
    "tasks.text.score",
    "tasks.text.train",
    "tasks.images",
    "tasks.text.card",
    "tasks.text.run",
    "tasks.text.use",
    "tasks.trainers",
    "cli",
]
"""Groups in the direction of imports (docs/design.md): a file may import its own group and what stands above."""

DOORS = {
    "": "cli",
    "__main__": "cli",
    "lora": "lora.active",
    "adapter_files": "adapter_files.merged",
    "pack": "pack.pack",
    "train": "train.loop",
    "sweeps": "sweeps.arguments",
    "tasks": "tasks.trainers",
    "tasks.text": "tasks.text.use",
}
"""Files and packages outside the groups, and the last group each may import: they only hand on names."""

MOST_LINES = 400


ALLOWED = {("lora.config", "adapter_files.peft.from_peft")}
"""Imports against the order: users look for `LoRAConfig.from_peft` on the class; PEFT's format has one place."""

COMPUTED = {""}
"""Modules that import modules by a computed name: the package's public names load when they are first used."""

MOST_FILES = 12


@pytest.fixture(scope="module", autouse=True)
def trees_go() -> Iterator[None]:
    """The trees are half a million objects, which the collector would scan in all later tests."""
    yield
    nodes.cache_clear()


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The syntax tree of a file."""
    return [*ast.walk(ast.parse(path.read_text()))]


def called(node: ast.AST) -> ast.expr | None:
    """The argument of a call of `import_module`."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return node.args[0] if name in ("import_module", "__import__") else None


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
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(argument := called(node), ast.Constant):
            names = [str(argument.value)]
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
        if (module, name) not in ALLOWED
        and ORDER.index(group_of(name) or DOORS.get(name, ORDER[-1])) > ORDER.index(group)
    ]


def test_imports_go_in_one_direction():
    assert [broken for path in FILES for broken in breaks(path)] == []


def test_every_group_exists():
    assert [group for group in ORDER if group not in MODULES] == []


def test_an_import_from_below_is_found(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    files = {
        "errors.py": "import rankwise.sweeps\n",
        "train/loop.py": "def f():\n    from ..sweeps import g\n    from rankwise.errors import RankwiseError\n",
        "sweeps.py": "from rankwise.train.loop import f\n",
        "streams.py": "from importlib import import_module\nimport_module('rankwise.sweeps')\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "MODULES", {"errors", "streams", "train", "train.loop", "sweeps"})
    assert breaks(tmp_path / "errors.py") == ["line 1: errors imports sweeps"]
    assert breaks(tmp_path / "train" / "loop.py") == ["line 2: train.loop imports sweeps"]
    assert breaks(tmp_path / "sweeps.py") == []
    assert breaks(tmp_path / "streams.py") == ["line 2: streams imports sweeps"]


def test_files_are_short():
    lines = {module_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {module: n for module, n in lines.items() if n > MOST_LINES} == {}


def catches_everything(handler: ast.ExceptHandler) -> bool:
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(t is None or (isinstance(t, ast.Name) and t.id in {"Exception", "BaseException"}) for t in types)


def swallows(handler: ast.ExceptHandler) -> bool:
    """A handler that raises the error again at its end, or another one from it, hides nothing."""
    last = handler.body[-1]
    return not (isinstance(last, ast.Raise) and (last.exc is None or last.cause is not None))


def test_no_catch_all_and_no_bare_assert():
    found = [
        f"{module_of(path)}, line {node.lineno}: {type(node).__name__}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Assert)
        or (
            isinstance(node, ast.ExceptHandler)
            and module_of(path) not in ("cli", "pack.faults")  # a user's function may raise anything
            and catches_everything(node)
            and swallows(node)
        )
    ]
    assert found == []


def test_imports_by_a_call_are_seen_and_every_exception_is_needed():
    found = {
        (module_of(path), name) for path in FILES for _, name in imported(path) if (module_of(path), name) in ALLOWED
    }
    assert found == ALLOWED


def test_modules_are_imported_by_name():
    computed = [
        f"{module_of(path)}, line {node.lineno}: imports a module by a computed name"
        for path in FILES
        if module_of(path) not in COMPUTED
        for node in nodes(path)
        if (argument := called(node)) is not None and not isinstance(argument, ast.Constant)
    ]
    assert computed == []


def test_folders_are_small():
    """A command is a file of `cli`, however many there are."""
    files = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert [f for f, n in files.items() if n > MOST_FILES and f.name != "cli"] == []


def test_no_module_has_the_name_of_a_folder():
    assert [path for path in FILES if path.with_suffix("").is_dir()] == []
