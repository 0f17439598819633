"""The loggers by name; a new one is a file and a row."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rankwise.errors import ConfigError, option, suggest
from rankwise.loggers.csv import CSVLog
from rankwise.loggers.mlflow import MLflowLog
from rankwise.loggers.tensorboard import TensorBoardLog
from rankwise.loggers.trackio import TrackioLog
from rankwise.loggers.wandb import WandbLog
from rankwise.train.events import Observer

LOGGERS: dict[str, Callable[[Path, bool], Observer]] = {
    "csv": lambda folder, append: CSVLog(folder, append=append),
    "tensorboard": lambda folder, append: TensorBoardLog(folder / "tensorboard", append=append),
    "wandb": lambda folder, append: WandbLog(folder, append=append),
    "trackio": lambda folder, append: TrackioLog(folder, append=append),
    "mlflow": lambda folder, append: MLflowLog(folder, append=append),
}
"""Name -> what makes the logger, given the folder for logs and whether what was logged there before stays."""


def loggers(names: Sequence[str], folder: Path, append: bool) -> list[Observer]:
    """Make loggers; nothing is written before training.

    Args:
        names: In `LOGGERS`; each counts once.
        folder: Where those write that write files.
        append: Whether what was logged there before stays.

    Raises:
        ConfigError: A name is not known, or its package is not installed.
        OutputError: Something else lies where a logger writes.
    """
    made: list[Observer] = []
    for name in dict.fromkeys(names):
        if name not in LOGGERS:
            known = ", ".join(LOGGERS)
            raise ConfigError(f'{option("log_to")} "{name}" is not known; there are {known}.{suggest(name, LOGGERS)}')
        made.append(LOGGERS[name](folder, append))
    return made
