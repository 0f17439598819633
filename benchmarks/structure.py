"""How the package is built, in numbers: lines, modules, imports, long functions, and the way from a command to a gradient.

    python benchmarks/structure.py [--json] [--package src/rankwise] [--no-frames]

It reads the syntax trees of the package's files, and trains one tiny `rankwise digits` to count call frames. Nothing
is timed, so one run is enough; run it before and after a change of structure and compare.
"""

import argparse
import ast
import io
import json
import os
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

ROOMS = ("lora", "pack", "tasks/text")
"""The folders whose inner imports are counted."""

READERS = ("report", "experiment", "api", "cli", "tasks/text/card")
"""Modules and folders that read results."""

OTHER_MAPPINGS = {"about", "begun", "changed", "config", "facts", "parts"}
"""Names of values in these modules that are no results: a run's beginning, `config.yaml`, PEFT's settings, splits."""

PROBING_STEPS = 10
"""More gradients than a probe of memory or time computes."""

NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file of the package."""

    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0] or "."

    def is_in(self, place: str) -> bool:
        """Whether the file is this module, or stands in this folder or below it."""
        return self.name == f"{place}.py" or self.name.startswith(f"{place}/")


def sources_of(package: Path) -> list[Source]:
    return [Source(path.relative_to(package).as_posix(), path.read_text()) for path in sorted(package.rglob("*.py"))]


def lines_of(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of docstrings, those of attributes included: a text that stands as a statement."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in lines_of(node)
    }


def token_lines(text: str) -> tuple[set[int], set[int]]:
    """Lines with code or a docstring on them, and lines with a comment on them."""
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return code, comments


@dataclass(frozen=True)
class Lines:
    """Every line of the package is of one kind; a line of code with a comment at its end is code."""

    all: int
    code: int
    docstrings: int
    comments: int
    blank: int


def count_lines(sources: list[Source]) -> Lines:
    kinds: Counter[str] = Counter()
    for source in sources:
        code, comments = token_lines(source.text)
        docstrings = docstring_lines(source.tree)
        kinds["all"] += len(source.text.splitlines())
        kinds["code"] += len(code - docstrings)
        kinds["docstrings"] += len(docstrings)
        kinds["comments"] += len(comments - code)
    return Lines(**kinds, blank=kinds["all"] - kinds["code"] - kinds["docstrings"] - kinds["comments"])


def modules_a_folder(sources: list[Source]) -> dict[str, int]:
    """Files a folder without its `__init__.py`, most first."""
    counts = Counter(source.folder for source in sources if not source.name.endswith("__init__.py"))
    return dict(counts.most_common())


def imported(source: Source, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, lazily or not, each once for each statement and name."""
    package = ["rankwise", *source.name.split("/")[:-1]]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("rankwise.")
            while name.startswith("rankwise.") and inside and inside not in modules:
                inside = inside.rpartition(".")[0]
            if inside in modules:
                yield inside


def imports_among(sources: list[Source], room: str) -> int:
    """Pairs of modules of a folder of which one imports the other."""
    dotted = {source.name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): source for source in sources}
    prefix = room.replace("/", ".") + "."
    pairs = {
        (name, target)
        for name, source in dotted.items()
        if name.startswith(prefix)
        for target in imported(source, set(dotted))
        if target.startswith(prefix) and target != name
    }
    return len(pairs)


def functions(sources: list[Source]) -> Iterator[tuple[Source, Function]]:
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, Function):
                yield source, node


def longest_functions(sources: list[Source], n: int = 5) -> list[tuple[int, str]]:
    """Lines of code from `def` to the end, inner functions included, docstrings and comments left out."""
    code = {source.name: token_lines(source.text)[0] - docstring_lines(source.tree) for source in sources}
    found = [
        (len(lines_of(node) & code[source.name]), f"{source.name}: {node.name}") for source, node in functions(sources)
    ]
    return sorted(found, reverse=True)[:n]


def n_parameters(node: Function) -> int:
    """Named parameters, `self` and `cls` left out."""
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for i, name in enumerate(names) if not (i == 0 and name in ("self", "cls"))])


def most_parameters(sources: list[Source], n: int = 5) -> list[tuple[int, str]]:
    found = [(n_parameters(node), f"{source.name}: {node.name}") for source, node in functions(sources)]
    return sorted(found, reverse=True)[:n]


def keys_of_results(package: Path) -> set[str]:
    """Names of the properties in the shipped schema of `results.json`."""
    keys: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            properties = node.get("properties")
            keys.update(properties if isinstance(properties, dict) else ())
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    for path in package.rglob("*.schema.json"):
        walk(json.loads(path.read_text()))
    if not keys:
        sys.exit(f"No schema (*.schema.json) lies in {package}; the subscripts into results are found by its keys.")
    return keys


def string_subscripts(sources: list[Source], keys: set[str]) -> dict[str, int]:
    """`x["key"]` of a key of results in the modules that read results, by file; `OTHER_MAPPINGS` left out."""
    counts: Counter[str] = Counter()
    for source in sources:
        if any(source.is_in(place) for place in READERS):
            counts[source.name] += sum(
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and node.slice.value in keys
                and name_of(node.value) not in OTHER_MAPPINGS
                for node in ast.walk(source.tree)
            )
    return {name: n for name, n in counts.most_common() if n}


def name_of(value: ast.expr) -> str:
    """`about` of `about` and of `beginning.about`; nothing for other expressions."""
    return value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""


def frames_to_gradient(package: Path) -> dict[str, list[str]]:
    """The longest ways of a training step of `rankwise digits` from the command to the gradient, as call frames: of a
    run of the sweep, and of the base, which the task trains before.

    Only the package's own frames count; generators and context managers are among them. Ways that fewer than
    `PROBING_STEPS` gradients take are those of probes, not of training.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(package.parent))
    import torch

    import rankwise.cli
    import rankwise.pack.model.packed_model as packed_model

    engine = getattr(packed_model, "ENGINE", None)
    stacks: Counter[tuple[str, ...]] = Counter()

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            names: list[str] = []
            frame = sys._getframe(1)
            while frame is not None:
                path = Path(frame.f_code.co_filename)
                if path.is_relative_to(package):
                    names.append(f"{path.relative_to(package).as_posix()}: {frame.f_code.co_name}")
                frame = frame.f_back
            stacks[tuple(reversed(names))] += 1
            return original(*args, **kwargs)

        return record

    places = [(torch.autograd, "backward"), (torch.autograd, "grad"), (torch.Tensor, "backward")]
    saved = [getattr(owner, name) for owner, name in places]
    for (owner, name), original in zip(places, saved, strict=True):
        setattr(owner, name, recording(original))
    if engine is not None:  # called past `torch.autograd`; its own attributes can't be set
        setattr(packed_model, "ENGINE", SimpleNamespace(run_backward=recording(engine.run_backward)))  # noqa: B010
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            options = [
                "--ranks",
                "1",
                "--seeds",
                "1",
                "--epochs",
                "1",
                "--lr",
                "1e-3",
                "--baseline-lr",
                "1e-3",
                "--processes",
                "1",  # the stacks of others aren't seen
                "--quiet",
            ]
            code = rankwise.cli.main(["digits", *options, "--out", f"{folder}/run"])
    finally:
        if engine is not None:
            setattr(packed_model, "ENGINE", engine)  # noqa: B010
        for (owner, name), value in zip(places, saved, strict=True):
            setattr(owner, name, value)
    taken = [stack for stack, n in stacks.items() if n >= PROBING_STEPS]
    ways = [stack[i:] for stack in taken for i, frame in enumerate(stack) if frame.endswith(": digits")]
    if code or not ways:
        sys.exit(
            f"`rankwise digits` ended with {code} and {len(ways)} ways to a gradient; frames need a run that trains."
        )
    of_runs = [way for way in ways if any(frame.startswith("sweeps/") for frame in way)]
    of_base = [way for way in ways if way not in of_runs]
    return {"run": list(max(of_runs, key=len)), "base": list(max(of_base, key=len))}


def measure(package: Path, frames: bool = True) -> dict[str, Any]:
    sources = sources_of(package)
    return {
        "lines": asdict(count_lines(sources)),
        "modules": len(sources),
        "modules_a_folder": modules_a_folder(sources),
        "imports_among": {room: imports_among(sources, room) for room in ROOMS},
        "longest_functions": longest_functions(sources),
        "most_parameters": most_parameters(sources),
        "string_subscripts": string_subscripts(sources, keys_of_results(package)),
        "frames": frames_to_gradient(package) if frames else {},
    }


def show(found: dict[str, Any]) -> str:
    lines = found["lines"]
    share = (lines["docstrings"] + lines["comments"]) / lines["all"]
    rows = [
        f"all lines                {lines['all']:,} in {found['modules']} files",
        f"lines of code            {lines['code']:,} (docstrings {lines['docstrings']:,}, comments {lines['comments']:,}, "
        f"blank {lines['blank']:,}; docstrings and comments are {share:.1%})",
        "modules a folder         " + ", ".join(f"{folder} {n}" for folder, n in found["modules_a_folder"].items()),
        "imports among modules    " + ", ".join(f"{room} {n}" for room, n in found["imports_among"].items()),
        "longest functions        " + "; ".join(f"{n} {name}" for n, name in found["longest_functions"]),
        "most parameters          " + "; ".join(f"{n} {name}" for n, name in found["most_parameters"]),
        f"string subscripts        {sum(found['string_subscripts'].values())} into results: "
        + ", ".join(f"{name} {n}" for name, n in found["string_subscripts"].items()),
    ]
    for whose, frames in found["frames"].items():
        rows.append(f"frames to a gradient     {len(frames)} ({whose}): " + " > ".join(frames))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, default=REPOSITORY / "src" / "rankwise")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-frames", action="store_true", help="read the files only, run nothing")
    arguments = parser.parse_args()
    found = measure(arguments.package.resolve(), not arguments.no_frames)
    print(json.dumps(found, indent=2) if arguments.json else show(found))


if __name__ == "__main__":
    main()
