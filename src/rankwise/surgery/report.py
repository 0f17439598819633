"""What was written in place of exact updates, and how far it is from them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rankwise.adapter_files.updates import StoredAdapter
from rankwise.surgery.spectra import summed_norm

WORST = 5
"""Layers that are listed, those of the largest error."""


@dataclass(frozen=True)
class WrittenUpdate:
    """The update of one weight.

    Args:
        path: The weight's path.
        r: Rank that was written.
        norm: Frobenius norm of the exact update.
        distance: Frobenius norm of the exact update minus the written one, types of the file included.
    """

    path: str
    r: int
    norm: float
    distance: float

    @property
    def error(self) -> float:
        """The distance as a share of the norm."""
        return _share(self.distance, self.norm)


@dataclass(frozen=True)
class SurgeryReport:
    """An adapter that was written, compared with the exact updates.

    Args:
        folder: The adapter's folder.
        updates: Every weight's update.
        parameters: Numbers in all A and B.
        notes: What else there is to know.
    """

    folder: Path
    updates: tuple[WrittenUpdate, ...]
    parameters: int
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Root of the summed squared distances, as a share of that of the norms."""
        return _share(
            math.hypot(*(update.distance for update in self.updates)),
            math.hypot(*(update.norm for update in self.updates)),
        )

    def __str__(self) -> str:
        """A summary, the layers of the largest errors, and notes."""
        low, high = min(u.r for u in self.updates), max(u.r for u in self.updates)
        ranks = f"r = {low}" if low == high else f"r = {low} to {high}"
        lines = [
            f"{self.folder}: {len(self.updates)} modules, {ranks}, {self.parameters:,} parameters in A and B",
            f"relative error of the update: {self.error:.3g}",
        ]
        worst = sorted(self.updates, key=lambda update: -update.error)[:WORST]
        if len(self.updates) > 1 and worst[0].error > _ROUNDING:
            lines += [
                f"  {update.error:.3g}  r = {update.r}, norm {update.norm:.3g}  {update.path}" for update in worst
            ]
        return "\n".join([*lines, *self.notes])


_ROUNDING = 1e-5
"""Errors below are those of float32 numbers in a file."""


def report_of(
    exact: Mapping[str, Sequence[tuple[float, Tensor, Tensor]]], written: StoredAdapter, notes: Sequence[str] = ()
) -> SurgeryReport:
    """Hold an adapter, as it was read from its folder, against exact updates.

    Args:
        exact: Path -> c, A and B of each term of the update's sum.
        written: The adapter.
        notes: For the report.
    """
    updates: list[WrittenUpdate] = []
    for path in sorted(exact, key=natural):
        one = written.updates[path]
        minus = (-one.scale, one.pair.A, one.pair.B)
        updates.append(WrittenUpdate(path, one.r, summed_norm(exact[path]), summed_norm([*exact[path], minus])))
    pairs = written.file.parts.pairs.values()
    return SurgeryReport(written.folder, tuple(updates), sum(t.numel() for pair in pairs for t in pair), tuple(notes))


def natural(path: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10.

    Examples:
        >>> sorted(["h.10.up", "h.2.up"], key=natural)
        ['h.2.up', 'h.10.up']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"\.", path)]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0 if part == 0 else math.inf
