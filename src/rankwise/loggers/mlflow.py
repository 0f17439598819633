"""MLflow: a parent run for the sweep, and a run under it for each run here."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from rankwise.loggers.log import Log, requires
from rankwise.train.events import RunInfo
from rankwise.train.outcome import Outcome

MOST, SECONDS = 900, 5.0
"""Numbers that are sent at once, of 1,000 that MLflow takes, and the time after which fewer are."""


@final
class MLflowLog(Log):
    """Logs to the server that `MLFLOW_TRACKING_URI` names, or to a database in the folder.

    Args:
        folder: Where `mlflow.db` lies, if no server is named.
        append: Not used: a resumed sweep is a further parent run.
        experiment: MLflow's experiment.
        sweep: Name of the parent run; by default the name of the folder that `folder` lies in.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(
        self, folder: str | Path, *, append: bool = False, experiment: str = "rankwise", sweep: str | None = None
    ) -> None:
        super().__init__(append=append)
        with requires("mlflow"):
            from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
            from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]
        self._client_of: Any = MlflowClient
        self._metric_of: Any = Metric
        self._folder, self._experiment = Path(folder), experiment
        self._sweep = sweep or self._folder.absolute().parent.name
        self._client: Any = None
        self._parent = ""
        self._ids: dict[str, str] = {}
        self._unsent: dict[str, list[Any]] = {}
        self._sent: dict[str, float] = {}

    def begin(self, run: RunInfo) -> None:
        """Begin the run there."""
        if not self._parent:
            self._begin_sweep()
        self._ids[run.name] = own = self._create(run.name, {"mlflow.parentRunId": self._parent})
        for name, value in asdict(run).items():
            self._client.log_param(own, name, value)

    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        now, unsent = time.time(), self._unsent.setdefault(run.name, [])
        unsent += [self._metric_of(name, value, int(1000 * now), step) for name, value in values.items()]
        if len(unsent) >= MOST or now - self._sent.setdefault(run.name, now) >= SECONDS:
            self._send(run.name)

    def end(self, run: RunInfo, outcome: Outcome) -> None:
        """End the run there."""
        self._send(run.name)
        own = self._ids.pop(run.name)
        self._client.set_tag(own, "status", outcome.status)
        self._client.set_terminated(own, "FAILED" if outcome.status in ("diverged", "failed") else "FINISHED")

    def close(self, verdict: str | None, words: str) -> None:
        """End what has not ended, and tag the parent run with the verdict."""
        if not self._parent:
            return
        for run, own in self._ids.items():
            self._send(run)
            self._client.set_terminated(own, "KILLED")
        if verdict is not None:
            self._client.set_tag(self._parent, "verdict", verdict)
            self._client.set_tag(self._parent, "answer", words)
        self._client.set_terminated(self._parent, "FINISHED" if verdict is not None else "KILLED")

    def _send(self, run: str) -> None:
        self._client.log_batch(self._ids[run], metrics=self._unsent.pop(run, []))
        self._sent[run] = time.time()

    def _begin_sweep(self) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            self._folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{self._folder.absolute()}/mlflow.db"
        self._client = self._client_of(tracking_uri=uri)
        known = self._client.get_experiment_by_name(self._experiment)
        self._id = self._client.create_experiment(self._experiment) if known is None else known.experiment_id
        self._parent = self._create(self._sweep, {})

    def _create(self, name: str, tags: dict[str, str]) -> str:
        return self._client.create_run(self._id, tags=tags, run_name=name).info.run_id
