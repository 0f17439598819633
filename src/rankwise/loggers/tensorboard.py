"""TensorBoard, through tensorboardX or, without it, torch.utils.tensorboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from rankwise.loggers.log import Log, requires
from rankwise.train.events import RunInfo
from rankwise.train.outcome import Outcome


@final
class TensorBoardLog(Log):
    """Writes event files into a folder for each run; see them by `tensorboard --logdir FOLDER`.

    Args:
        folder: Where the folders of runs lie.
        append: Whether the event files that are there stay.

    Raises:
        ConfigError: Neither package is installed.
    """

    def __init__(self, folder: str | Path, *, append: bool = False) -> None:
        super().__init__(append=append)
        self._folder, self._writer_of = Path(folder), _summary_writer()
        self._writers: dict[str, Any] = {}

    def begin(self, run: RunInfo) -> None:
        """Open the run's event file."""
        where = self._folder / run.name
        if not self.append:
            for path in where.glob("events.out.tfevents.*"):
                path.unlink()
        writer = self._writers[run.name] = self._open(where)
        what = f"{run.label}, learning rate {run.lr:g}, seed {run.seed}, {run.parameters:,} trainable parameters"
        writer.add_text("run", what)

    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writers[run.name].add_scalar(name, value, step)

    def end(self, run: RunInfo, outcome: Outcome) -> None:
        """Close the run's event file."""
        writer = self._writers.pop(run.name)
        writer.add_text("status", outcome.status, outcome.steps)
        writer.close()

    def close(self, verdict: str | None, words: str) -> None:
        """Close what is open, and add the answer as a text."""
        for writer in self._writers.values():
            writer.close()
        if verdict is not None:
            writer = self._open(self._folder)
            writer.add_text("verdict", words)
            writer.close()

    def _open(self, folder: Path) -> Any:
        # The files are named after the second, so two of one second would be one.
        number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        return self._writer_of(str(folder), filename_suffix=f".{number}")


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            with requires("tensorboard"):
                raise
    return SummaryWriter
