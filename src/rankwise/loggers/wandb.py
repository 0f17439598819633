"""Weights & Biases: a run there for each run here, in one group."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from rankwise.loggers.log import Log, requires
from rankwise.train.events import RunInfo
from rankwise.train.outcome import Outcome


@final
class WandbLog(Log):
    """Logs to W&B; `WANDB_MODE=offline` writes files only, which `wandb sync` sends later.

    Args:
        folder: Where W&B puts its files.
        append: Not used: a resumed run continues as a further run of the same name.
        project: W&B's project.
        group: What the runs of one sweep share; by default the name of the folder that `folder` lies in.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(
        self, folder: str | Path, *, append: bool = False, project: str = "rankwise", group: str | None = None
    ) -> None:
        super().__init__(append=append)
        with requires("wandb"):
            import wandb  # pyright: ignore[reportMissingImports]
        self._wandb: Any = wandb
        self._folder, self._project = Path(folder), project
        self._group = group or self._folder.absolute().parent.name
        self._runs_there: dict[str, Any] = {}

    def begin(self, run: RunInfo) -> None:
        """Start the run in W&B."""
        self._runs_there[run.name] = self._init(run.name, asdict(run))

    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self._runs_there[run.name].log(dict(values), step=step)

    def end(self, run: RunInfo, outcome: Outcome) -> None:
        """Finish the run there."""
        there = self._runs_there.pop(run.name)
        there.summary["status"] = outcome.status
        there.finish(exit_code=int(outcome.status in ("diverged", "failed")))

    def close(self, verdict: str | None, words: str) -> None:
        """Finish the open runs, and log the verdict as a separate run."""
        for there in self._runs_there.values():
            there.finish(exit_code=1)
        if verdict is not None:
            there = self._init("verdict", {})
            there.summary.update({"verdict": verdict, "answer": words})
            there.finish()

    def _init(self, name: str, config: dict[str, Any]) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._wandb.init(
            project=self._project,
            group=self._group,
            name=name,
            config=config,
            dir=str(self._folder),
            reinit="create_new",
        )
