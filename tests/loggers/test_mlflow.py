"""MLflow, with a stand-in for its package: a parent run, and a run under it for each run here."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from logged_sweep import WRITTEN, tell
from rankwise.errors import ConfigError
from rankwise.loggers.mlflow import MLflowLog
from rankwise.loggers.table import loggers


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Client:
    """What `mlflow.tracking.MlflowClient` makes; the last one is kept."""

    last: "Client"

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.experiments, self.runs, self.batches = tracking_uri, [], {}, 0
        Client.last = self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="old") if name == "known" else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return "new"

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        self.runs[run_name] = SimpleNamespace(
            experiment=experiment_id, tags=dict(tags), params={}, metrics=[], status="RUNNING"
        )
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_param(self, run: str, name: str, value: object) -> None:
        self.runs[run].params[name] = value

    def log_batch(self, run: str, metrics: list[Metric]) -> None:
        assert len(metrics) <= 1000
        self.batches += 1
        self.runs[run].metrics += metrics

    def set_tag(self, run: str, name: str, value: str) -> None:
        self.runs[run].tags[name] = value

    def set_terminated(self, run: str, status: str) -> None:
        self.runs[run].status = status


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow, tracking, entities = ModuleType("mlflow"), ModuleType("mlflow.tracking"), ModuleType("mlflow.entities")
    mlflow.tracking, tracking.MlflowClient, entities.Metric = tracking, Client, Metric  # pyright: ignore
    for module in (mlflow, tracking, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_runs_under_a_parent_and_the_verdict(tmp_path: Path) -> None:
    (log,) = loggers(["mlflow"], tmp_path / "ranks" / "logs", False)
    assert not (tmp_path / "ranks").exists()
    tell(log)
    client = Client.last
    assert client.uri == f"sqlite:///{tmp_path / 'ranks' / 'logs'}/mlflow.db"
    assert client.experiments == ["rankwise"]
    parent = client.runs.pop("ranks")
    assert (parent.tags, parent.status) == ({"verdict": "shown", "answer": "r = 1 does it"}, "FINISHED")
    for name, written in WRITTEN.items():
        run = client.runs[name]
        assert run.tags["mlflow.parentRunId"] == "ranks"
        assert [(m.step, m.key, m.value) for m in run.metrics] == [
            (step, key, value) for step, values in written for key, value in values.items()
        ]
    assert client.runs["r1-s0"].params["r"] == 1
    assert {name: run.status for name, run in client.runs.items()} == {"r1-s0": "KILLED", "r2-s0": "FAILED"}
    assert client.runs["r2-s0"].tags["status"] == "diverged"
    assert client.batches == 2, "not one for each step"


def test_an_interrupted_sweep_in_a_known_experiment_on_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    tell(MLflowLog(tmp_path / "logs", experiment="known", sweep="mine"), None)
    client = Client.last
    assert (client.uri, client.experiments) == ("http://localhost:5000", [])
    assert client.runs["mine"].status == "KILLED"
    assert not (tmp_path / "logs").exists()


def test_many_numbers_are_sent_in_parts(tmp_path: Path) -> None:
    log = MLflowLog(tmp_path / "logs")
    tell(log, None)
    run, values = log._runs["r1-s0"], {f"n{i}": float(i) for i in range(100)}
    log.begin(run)
    for step in range(25):
        log.write(run, step, values)
    log._send(run.name)
    assert [(m.step, m.value) for m in Client.last.runs["r1-s0"].metrics] == [
        (step, value) for step in range(25) for value in values.values()
    ]


def test_without_the_package_it_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "mlflow.tracking", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r'needs the package "mlflow\S*", .*checkout of Rankwise\.$'):
        MLflowLog(tmp_path)
