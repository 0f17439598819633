"""Record a run's training inputs as checksums in its directory: evaluations report repeated inputs."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rankwise.sweeps.storage.owned import TRAINED_ON as FILE
from rankwise.tasks.text.data.examples import Example
from rankwise.tasks.text.data.splits import plainly
from rankwise.writing import read_regular, replacing

_BYTES = 8
"""Of a checksum: two of a billion inputs are alike with probability 1 in 37."""


def checksums(examples: Iterable[Example]) -> np.ndarray:
    """Ascending checksums of the distinct inputs; letter case and spacing make no difference.

    Examples:
        >>> from rankwise.tasks.text.data.examples import Labelled
        >>> len(checksums([Labelled(1, "One  two", "a"), Labelled(2, "one two", "b"), Labelled(3, "three", "a")]))
        2
    """
    return np.unique(np.array([_checksum(example) for example in examples], dtype=np.uint64))


def write_seen(directory: Path, inputs: np.ndarray) -> Path:
    """Write the checksums of a run's training inputs into its directory.

    Raises:
        OutputError: It can't be written.
    """
    with replacing(directory / FILE) as temporary, temporary.open("wb") as file:
        np.save(file, inputs)
    return directory / FILE


def run_of(adapter: Path) -> Path:
    """The directory of the run that an adapter lies in."""
    return adapter.resolve().parent.parent


def count_seen(adapter: Path, examples: Sequence[Example]) -> int:
    """Count the examples whose input the adapter was trained on; 0 where that is not known."""
    try:
        known = np.load(io.BytesIO(read_regular(run_of(adapter) / FILE)), allow_pickle=False)
    except (
        OSError,
        ValueError,
        MemoryError,
        SyntaxError,
    ):  # not in a run's directory, or in one from before this was kept
        return 0
    return int(np.isin(np.array([_checksum(example) for example in examples], dtype=np.uint64), known).sum())


def seen_notes(names: Sequence[str], folders: Sequence[Path], examples: Sequence[Example], data: str) -> list[str]:
    """Note for which adapters the examples are training examples.

    Args:
        names: Of the adapters.
        folders: Of each.
        examples: The examples.
        data: Where they come from, for the notes.
    """
    counts: dict[int, list[str]] = {}
    by_run = {run: count_seen(folder, examples) for run, folder in {run_of(f): f for f in folders}.items()}
    for name, folder in zip(names, folders, strict=True):
        counts.setdefault(by_run[run_of(folder)], []).append(name)
    return [
        f"{n:,} of {len(examples):,} examples of {data} have an input that {', '.join(names)} "
        f"{'was' if len(names) == 1 else 'were'} trained on: figures on them flatter."
        for n, names in counts.items()
        if n
    ]


def _checksum(example: Example) -> int:
    digest = hashlib.blake2b(plainly(example.source).encode("utf-8", "surrogatepass"), digest_size=_BYTES)
    return int.from_bytes(digest.digest(), "little")
