"""Further training settings, stored next to an adapter, so that its use matches its training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankwise.tasks.text.sidecar import read_sidecar, write_sidecar

FILE = "training.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the examples and the base were made into; None where it was the default, or there is no such thing.

    Args:
        max_length: The most tokens of an example.
        loss_on: Of sft: "answer" or "all".
        pooling: Of a classifier: "mean" or "model".
        quantize: In what the base's linear layers were kept: "int8" or "nf4".
        reads: What the examples are: "texts" or "images".

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Trained(max_length=64, pooling="mean").save(Path(folder))
        ...     read_trained(Path(folder))
        Trained(max_length=64, loss_on=None, pooling='mean', quantize=None, reads='texts')
    """

    max_length: int | None = None
    loss_on: str | None = None
    pooling: str | None = None
    quantize: str | None = None
    reads: str = "texts"

    def save(self, folder: Path) -> Path:
        """Write `training.json` into a folder.

        Raises:
            OutputError: The folder can't be written.
        """
        return write_sidecar(folder / FILE, asdict(self))


def read_trained(folder: Path) -> Trained | None:
    """Read `training.json` from a folder; None where there is none.

    Raises:
        DataError: It is damaged.
    """
    holds = '{"max_length": ..., "loss_on": ..., "pooling": ..., "quantize": ...}'
    return read_sidecar(folder / FILE, _trained, holds)


def _trained(content: Any) -> Trained:
    words = {key: content[key] for key in ("loss_on", "pooling", "quantize")}
    if not isinstance(reads := content.get("reads", "texts"), str):
        raise TypeError("what the examples are is no text")
    if not all(isinstance(word, str | None) for word in words.values()):
        raise TypeError("a setting is no text")
    if not isinstance(content["max_length"], int | None):
        raise TypeError("the length is no whole number")
    return Trained(max_length=content["max_length"], reads=reads, **words)
