"""Trackio: a run there for each run here, in one group."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from contextvars import Context
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from rankwise.loggers.log import Log, requires
from rankwise.train.events import RunInfo
from rankwise.train.outcome import Outcome


@final
class TrackioLog(Log):
    """Logs to Trackio's local database, or where its environment variables say; `trackio show` draws it.

    Args:
        folder: Names the group; nothing is written there.
        append: Whether a run that Trackio has already is continued.
        project: Trackio's project.
        group: What the runs of one sweep share; by default the name of the folder that `folder` lies in.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(
        self, folder: str | Path, *, append: bool = False, project: str = "rankwise", group: str | None = None
    ) -> None:
        super().__init__(append=append)
        with requires("trackio"):
            import trackio  # pyright: ignore[reportMissingImports]
        self._trackio: Any = trackio
        self._project, self._group = project, group or Path(folder).absolute().parent.name
        self._runs_there: dict[str, Any] = {}

    def begin(self, run: RunInfo) -> None:
        """Begin the run there."""
        self._runs_there[run.name] = self._init(run.name, asdict(run))

    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self._runs_there[run.name].log(dict(values), step=step)

    def end(self, run: RunInfo, outcome: Outcome) -> None:
        """Finish the run there."""
        there = self._runs_there.pop(run.name)
        there.log({"status": outcome.status}, step=outcome.steps)
        self._finish(there)

    def close(self, verdict: str | None, words: str) -> None:
        """Finish the open runs, and log the verdict as a separate run."""
        for there in self._runs_there.values():
            self._finish(there)
        if verdict is not None:
            there = self._init("verdict", {})
            there.log({"verdict": verdict, "answer": words})
            self._finish(there)

    def _init(self, name: str, config: dict[str, Any]) -> Any:
        # In its own context, as a run that begins finishes the run before it in the same context.
        with redirect_stdout(sys.stderr):
            return Context().run(
                self._trackio.init,
                project=self._project,
                name=f"{self._group}/{name}",
                group=self._group,
                config=config,
                resume="allow" if self.append else "never",
                embed=False,
            )

    def _finish(self, there: Any) -> None:
        with redirect_stdout(sys.stderr):  # standard output is for results
            there.finish()
