"""A pytest plugin that writes down what each test, fixture and collected file costs in CPU seconds.

Times on a wall clock say little on a busy machine; these are the process's own seconds and those of the processes it
waited for. Those that nobody waits for are not in them: Ray's, and the forks of `fresh.py`.

    PYTHONPATH=tests CPU_SECONDS=runs/cpu make test PYTEST_ARGS="-p cpu_seconds"
    python tests/cpu_seconds.py runs/cpu          # the sums by folder, then the costliest files, tests and fixtures
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("CPU_SECONDS")


def spent() -> dict[str, float]:
    """This process's CPU seconds and those of the processes it waited for."""
    times = os.times()
    return {"own": times.user + times.system, "children": times.children_user + times.children_system}


def since(start: dict[str, float]) -> dict[str, float]:
    """The CPU seconds spent since `start`."""
    return {name: value - start[name] for name, value in spent().items()}


def write(kind: str, name: str, seconds: dict[str, float]) -> None:
    """Appends one row to this process's file, at once: a run that is stopped leaves what it measured."""
    if FOLDER:
        Path(FOLDER).mkdir(parents=True, exist_ok=True)
        with Path(FOLDER, f"{os.getpid()}.jsonl").open("a") as file:
            print(json.dumps({"kind": kind, "name": name, **seconds}), file=file)


def timed(kind: str, name: str) -> Iterator[None]:
    """Writes one row down for what runs at the `yield`."""
    start = spent()
    result = yield
    write(kind, name, since(start))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A whole test, with the fixtures made for it."""
    return (yield from timed("test", item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Iterator[None]:
    """A fixture, with those it asks for that were not made before."""
    return (yield from timed("fixture", f"{fixturedef.baseid}::{fixturedef.argname}"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A collected file or folder: its imports and its parametrisations."""
    return (yield from timed("collect", collector.nodeid))


def pytest_sessionfinish() -> None:
    """The whole process's seconds."""
    write("process", os.environ.get("PYTEST_XDIST_WORKER", "main"), spent())


def main(folder: str, most: int = 60) -> None:
    """Prints the sums."""
    rows = [json.loads(line) for file in Path(folder).glob("*.jsonl") for line in file.read_text().splitlines()]
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))

    def add(table: str, name: str, row: dict[str, Any]) -> None:
        for at, value in enumerate((row["own"], row["children"], 1)):
            sums[table][name][at] += value

    for row in rows:
        add("kind", row["kind"], row)
        if row["kind"] == "test":
            file = row["name"].split("::")[0]
            add("folder", "/".join(file.split("/")[:2]) if file.count("/") > 1 else file.split("/")[0], row)
            add("file", file, row)
            add("test", row["name"].split("[")[0], row)
        elif row["kind"] in ("fixture", "collect", "process"):
            add(row["kind"], row["name"], row)
    for table, names in sums.items():
        print(f"\n{table}: own, children, times")
        for name, (own, children, count) in sorted(names.items(), key=lambda of: -sum(of[1][:2]))[:most]:
            print(f"{own:8.2f} {children:8.2f} {count:6.0f}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *[int(most) for most in sys.argv[2:3]])
