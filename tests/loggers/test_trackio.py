"""Trackio, with a stand-in for its package: a run there for each run here, none of which ends another."""

import sys
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from logged_sweep import WRITTEN, tell
from rankwise.errors import ConfigError
from rankwise.loggers.table import loggers
from rankwise.loggers.trackio import TrackioLog


class Run:
    """What `trackio.init` gives."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.logged, self.finished = given, [], False

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        assert not self.finished
        self.logged.append((step, values))

    def finish(self) -> None:
        print("* Run finished.")
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    made: dict[str, Run] = {}
    current: ContextVar[Run | None] = ContextVar("current", default=None)

    def init(**given: Any) -> Run:
        before = current.get()
        if before is not None:
            before.finish()
        print("* Created new run.")
        run = made.setdefault(given["name"], Run(given))
        current.set(run)
        return run

    package = ModuleType("trackio")
    package.init = init  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "trackio", package)
    return made


@pytest.mark.parametrize("append", [False, True])
def test_runs_and_the_verdict(
    tmp_path: Path, runs: dict[str, Run], append: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (log,) = loggers(["trackio"], tmp_path / "ranks" / "logs", append)
    tell(log)
    logged = {name.removeprefix("ranks/"): run.logged for name, run in runs.items()}
    assert logged.pop("verdict") == [(None, {"verdict": "shown", "answer": "r = 1 does it"})]
    assert logged["r2-s0"].pop() == (2, {"status": "diverged"})
    assert logged == WRITTEN
    assert all(run.finished for run in runs.values())
    assert {run.given["resume"] for run in runs.values()} == {"allow" if append else "never"}
    assert capsys.readouterr().out == "", "standard output is for results"


def test_without_the_package_it_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r'needs the package "trackio", .*checkout of Rankwise\.$'):
        TrackioLog(tmp_path)
