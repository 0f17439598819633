"""The step of a sweep after its training: adapters cut to smaller ranks, and the verdict of what to ship."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rankwise.errors import RankwiseError
from rankwise.pack.resolved import AdapterState
from rankwise.results.compressed import Compressed
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.warm_start import read_start
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.judged import JudgedSweep
from rankwise.sweeps.problem import Problem, Run
from rankwise.sweeps.squeezing.record import compressed_results
from rankwise.sweeps.squeezing.repair import repair
from rankwise.sweeps.squeezing.squeeze import squeeze
from rankwise.train.events import Observers


@dataclass(frozen=True)
class SavedAdapters:
    """The adapters of a sweep in its run directory.

    Args:
        directory: The run directory; None where nothing is saved.
        folders: Run -> folder of its adapter, relative to the directory.
    """

    directory: Path | None
    folders: Mapping[str, str]

    def state(self, model: nn.Module, run: Run) -> AdapterState | None:
        """The tensors of an adapter that an earlier sweep has saved; None where they are there no more."""
        if self.directory is None or run.name not in self.folders:
            return None
        try:
            return read_start(model, self.directory / self.folders[run.name]).state
        except RankwiseError:
            return None


def is_asked(deciding: Deciding, problem: Problem) -> bool:
    """Whether adapters are cut: as asked, else where scoring one costs no more than passing its rows."""
    if deciding.compressed is None:
        return problem.model_metric is None or deciding.squeeze_steps is not None
    return deciding.compressed


def squeeze_after_training(
    model: nn.Module,
    judged: JudgedSweep,
    candidates: Sequence[Candidate],
    deciding: Deciding,
    saved: SavedAdapters,
    observers: Observers,
) -> Compressed | None:
    """Cut the trained adapters, repair them where that is asked for, and decide which to ship.

    It is computed again when a run is resumed after it, to the same numbers.

    Args:
        model: The base; it is as before afterwards.
        judged: The sweep; its state gets the cut adapters.
        candidates: All of the sweep.
        deciding: Whether, and with how many steps of repair.
        saved: The adapters in the run directory.
        observers: Hear what happens.

    Returns:
        The part of the results; None where nothing was cut.
    """
    if not is_asked(deciding, judged.problem) or not judged.swept.complete:
        return None
    squeezed = squeeze(model, judged, candidates, lambda run: saved.state(model, run))
    if squeezed.unread:
        judged.swept.note([_unread(squeezed.unread)])
    if not squeezed.cut.runs:
        return None
    sizes = len({run.configuration for run in squeezed.cut.runs})
    adapters = len({run.name for run in squeezed.trained.values()})
    observers.message(f"Cut {adapters:,} adapter{'s' * (adapters > 1)} to {sizes} smaller rank{'s' * (sizes > 1)}")
    if deciding.squeeze_steps is not None:
        observers.message(f"Training them, and those trained at these ranks, {deciding.squeeze_steps:,} steps further")
        repair(model, judged, squeezed, deciding.squeeze_steps)
    judged.swept.compressed = squeezed.to_ship
    return compressed_results(judged, squeezed, saved.folders)


def _unread(names: Sequence[str]) -> str:
    several = len(names) > 1
    others = f" and {len(names) - 1:,} others" * several
    return (
        f"{names[0]}{others} of the earlier sweep {'were' if several else 'was'} not cut to smaller ranks, as "
        f"{'their adapters' if several else 'its adapter'} can't be read any more."
    )
