"""Runs of a sweep as adapters on the model: to use, and to save in PEFT's format."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from rankwise.adapter_files import save_adapter
from rankwise.collector import collector_paused
from rankwise.errors import AdapterError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, attach, check_new_name, eject
from rankwise.lora.layer.initial import initial_tensors
from rankwise.lora.targets.find import Target, Targets, find_targets
from rankwise.lora.trained_modules import enclosing_modules
from rankwise.lora.variants import VARIANTS
from rankwise.pack.resolved import AdapterState
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
        if run.method == "lora" and run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"
    }
    return {name: folder for name, folder in folders.items() if name not in earlier or (directory / folder).is_dir()}


def put_on(model: nn.Module, run: Run, state: AdapterState, name: str) -> Report:
    """Attach what a run has trained to the base, as `inject` attaches a fresh adapter.

    Args:
        model: The base.
        run: Of method "lora".
        state: Its tensors.
        name: What the adapter is to be called.

    Raises:
        AdapterError: The run has no A and B, or the name is taken.
    """
    lora, modules = run.member.lora, run.member.modules_to_save
    if lora is None:
        raise AdapterError(f"{run.name} trains no A and B; there is no adapter of it.")
    check_new_name(model, name)
    found = find_targets(model, lora)
    adapted = [target for target in found.adapted if target.name not in modules]
    tensors = {target.name: _tensors_of(target, lora, state) for target in adapted}
    of_adapter = {f"{name}.{key}" for name, own in tensors.items() for key in own}
    replacements = {key: value for key, value in state.items() if key not in of_adapter}
    config = replace(lora, modules_to_save=enclosing_modules(model, modules))
    with collector_paused():
        return attach(model, Targets(adapted, found.left_out), tensors, config, name, replacements)


def _tensors_of(target: Target, lora: LoRAConfig, state: AdapterState) -> dict[str, Tensor]:
    """A run's tensors in a layer: trained ones from its state, frozen ones drawn from its settings."""
    declared = [one for one in VARIANTS[target.variant].tensors if not one.shared]
    drawn = {} if all(one.trained for one in declared) else initial_tensors(target, lora)
    return {one.name: state[f"{target.name}.{one.name}"] if one.trained else drawn[one.name] for one in declared}


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
        for run in swept.runs:
            if run.name in self.folders:
                put_on(self.model, run, swept.outcomes[run.name].state, "saving")
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
