"""Runs of a sweep as adapters in PEFT's format."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rankwise.adapter_files import save_adapter
from rankwise.lora.inject import eject
from rankwise.sweeps.attaching import put_on
from rankwise.sweeps.choose.answer import CANDIDATES
from rankwise.sweeps.problem import Run, SweepState

BASE_IN_DIRECTORY = "../../base"
"""The path from an adapter to a base next to `adapters/` in the run directory."""


def adapter_folders(swept: SweepState, directory: Path, earlier: Collection[str]) -> dict[str, str]:
    """Each finished run's folder of its adapter, relative to the run directory.

    Args:
        swept: What the runs gave.
        directory: The run directory.
        earlier: Runs of an earlier sweep, whose adapters may have been removed.
    """
    folders = {
        run.name: f"adapters/{run.name}"
        for run in swept.runs
        if run.method in CANDIDATES and run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"
    }
    return {name: folder for name, folder in folders.items() if name not in earlier or (directory / folder).is_dir()}


@dataclass(frozen=True)
class Adapters:
    """Writes the adapters of a sweep.

    Args:
        model: The base; it is as before afterwards.
        folders: Run -> folder of its adapter, relative to the run directory.
        base_name: What the adapters call their base.
        beside: Writes what belongs next to the adapter of a run into its folder.
    """

    model: nn.Module
    folders: Mapping[str, str]
    base_name: str | None
    beside: Callable[[Path, Run], object] | None = None

    def write(self, swept: SweepState, directory: Path) -> None:
        """Save the adapters of finished runs into a run directory.

        Raises:
            OutputError: A folder can't be written.
        """
        outcomes, cut = swept.outcomes, swept.compressed
        for run in [*swept.runs, *([] if cut is None else cut.runs)]:
            if run.name in self.folders:
                outcome = outcomes[run.name] if cut is None or run.name in outcomes else cut.outcomes[run.name]
                put_on(self.model, run, outcome.state, "saving")
                try:
                    folder = save_adapter(
                        self.model,
                        directory / self.folders[run.name],
                        "saving",
                        base_name=self.base_name,
                        strict=False,  # one run that diverged must not cost the others' files
                    )
                finally:
                    eject(self.model, "saving")
                if self.beside is not None:
                    self.beside(folder, run)
