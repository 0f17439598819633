"""W&B, with a stand-in for its package: a run there for each run here."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from logged_sweep import RUNS, WRITTEN, tell
from rankwise.errors import ConfigError
from rankwise.loggers.table import loggers
from rankwise.loggers.wandb import WandbLog


class Run:
    """What `wandb.init` gives."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.logged, self.summary, self.exit_code = given, [], {}, None

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int = 0) -> None:
        assert self.exit_code is None, "once"
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    made: dict[str, Run] = {}

    def init(**given: Any) -> Run:
        assert Path(given["dir"]).is_dir()
        return made.setdefault(given["name"], Run(given))

    package = ModuleType("wandb")
    package.init = init  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", package)
    return made


def test_runs_and_the_verdict(tmp_path: Path, runs: dict[str, Run]) -> None:
    (log,) = loggers(["wandb"], tmp_path / "ranks" / "logs", False)
    assert not (tmp_path / "ranks").exists()
    tell(log)
    assert {name: run.logged for name, run in runs.items() if run.logged} == WRITTEN
    assert {name: run.exit_code for name, run in runs.items()} == {"r1-s0": 1, "r2-s0": 1, "verdict": 0}
    assert runs["r2-s0"].summary == {"status": "diverged"}
    assert runs["verdict"].summary == {"verdict": "shown", "answer": "r = 1 does it"}
    assert {run.given["group"] for run in runs.values()} == {"ranks"}
    assert runs["r1-s0"].given["config"]["r"] == RUNS[0].r


def test_project_and_group_can_be_chosen(tmp_path: Path, runs: dict[str, Run]) -> None:
    tell(WandbLog(tmp_path, project="mine", group="ours"), None)
    assert {(run.given["project"], run.given["group"]) for run in runs.values()} == {("mine", "ours")}
    assert "verdict" not in runs


def test_without_the_package_it_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r'needs the package "wandb", .*checkout of Rankwise\.$'):
        WandbLog(tmp_path)
