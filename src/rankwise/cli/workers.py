"""Flags of processes that train packs: their meaning and valid combinations."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.cli.recorded import Recorded
from rankwise.errors import ConfigError
from rankwise.remote.store import url_of

if TYPE_CHECKING:
    from rankwise.cli.training import RunOptions
    from rankwise.sweeps.run.units.context import Workers


def check_workers(run_options: "RunOptions", settings: dict[str, Any]) -> None:
    """Refuse flags of workers that don't go together, and a cluster that doesn't answer, before a model is loaded.

    Raises:
        ConfigError: They don't, or it doesn't.
    """
    if run_options.max_workers is not None and run_options.max_workers < 1:
        raise ConfigError(f"--max-workers is {run_options.max_workers}; it must be a whole number of at least 1.")
    if run_options.max_workers is not None and not run_options.prepare and run_options.ray is None:
        raise ConfigError("--max-workers plans packs for this many workers; give it with --ray or --prepare.")
    for flag, value in (("cpus", run_options.cpus_per_worker), ("gpus", run_options.gpus_per_worker)):
        if value is not None and run_options.ray is None:
            raise ConfigError(f"--{flag}-per-worker goes with --ray; give both.")
    if run_options.prepare and run_options.ray is not None:
        raise ConfigError("--prepare writes units for other processes, and --ray starts some; give one of them.")
    if run_options.prepare and settings.get("max-minutes") is not None:
        raise ConfigError(
            "--max-minutes does not go with --prepare: nothing measures the time of workers that others start; give "
            "--max-runs."
        )
    if (url := _url_of_run(run_options)) is not None:
        from rankwise.sweeps.run.units.on_ray import check_reached

        check_reached(url, run_options.ray)
    if run_options.ray is not None:
        from rankwise.sweeps.run.units.address import answering, require_ray

        require_ray()
        answering(run_options.ray)


def _check_processes(n: int, run_options: "RunOptions", settings: dict[str, Any]) -> None:
    """Refuse a number of processes that can't be used.

    Raises:
        ConfigError: It can't.
    """
    if n < 1:
        raise ConfigError(f"--processes is {n}; it must be a whole number of at least 1.")
    for flag, given in (("--ray", run_options.ray), ("--prepare", run_options.prepare or None)):
        if given is not None:
            raise ConfigError(
                f"--processes trains packs on this machine, and {flag} has others do it; give one of them."
            )
    if n > 1:
        from rankwise.sweeps.run.units.local import LocalProcesses
        from rankwise.train.machine.device import find_device

        LocalProcesses(n)
        if (device := find_device(settings.get("device", "cpu"))).type != "cpu":
            raise ConfigError(f"--processes {n} is for a CPU, and --device is {device}; leave one of them out.")


def processes_of(run_options: "RunOptions", command: str, settings: dict[str, Any]) -> int:
    """Processes of this machine that train packs: as asked for, or as suits the digits' small model.

    Raises:
        ConfigError: What was asked for can't be used.
    """
    if run_options.processes is not None:
        _check_processes(run_options.processes, run_options, settings)
        return run_options.processes
    if command != "digits" or run_options.ray is not None or run_options.prepare:
        return 1
    from rankwise.sweeps.run.units.local import suggested
    from rankwise.train.machine.device import find_device

    return suggested(find_device(settings.get("device", "cpu")))


def _url_of_run(run_options: "RunOptions") -> str | None:
    """The URL of a run directory on an object store; None for one of this machine."""
    if run_options.resume is None:
        return None if run_options.out is None else url_of(run_options.out)
    # It loads torch, which only a run that is resumed from a copy needs here.
    from rankwise.sweeps.storage.working_copy import shown

    return url_of(shown(run_options.resume))


def workers_of(run_options: "RunOptions", directory: Path, processes: int) -> "Workers | None":
    """What trains the packs; None for this process."""
    from rankwise.sweeps.run.units.apart import Apart
    from rankwise.sweeps.run.units.local import LocalProcesses
    from rankwise.sweeps.run.units.on_ray import Ray

    if run_options.ray is not None:
        return Ray(
            address=run_options.ray,
            max_workers=run_options.max_workers,
            cpus_per_worker=run_options.cpus_per_worker,
            gpus_per_worker=run_options.gpus_per_worker,
            make=Recorded(directory.absolute()),
        )
    if run_options.prepare:
        return Apart(run_options.max_workers or 1)
    return LocalProcesses(processes) if processes > 1 else None


def idle_gpus(run_options: "RunOptions", settings: dict[str, Any]) -> str | None:
    """Advice where a sweep would leave GPUs of this machine idle; None where there is none."""
    import torch

    n = torch.cuda.device_count()
    if run_options.ray is not None or run_options.prepare or settings.get("device") != "auto" or n < 2:
        return None
    return f"This machine has {n} GPUs, and one process uses one of them; --ray local uses them all."
