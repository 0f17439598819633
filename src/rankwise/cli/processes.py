"""Several processes that torchrun has started and that train one adapter together."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rankwise.cli.app import EXIT_INTERRUPTED, EXIT_OK
from rankwise.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.cli.training import RunOptions
    from rankwise.experiment import Experiment, ExperimentFactory
    from rankwise.pack.step.processes import Processes
    from rankwise.train.events import Observers


def started_together() -> bool:
    """Whether this process is one of several that torchrun has started."""
    named = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return named and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def joined(device: str, run_options: "RunOptions") -> Generator["Processes"]:
    """Join the other processes inside the block; on GPUs each process takes one GPU.

    Args:
        device: What the user gave.
        run_options: How the command runs.

    Raises:
        ConfigError: What the user asks for is for one process.
    """
    for flag, given in (
        ("--resume", run_options.resume),
        ("--ray", run_options.ray),
        ("--prepare", run_options.prepare or None),
    ):
        if given is not None:
            raise ConfigError(f"{flag} is for one process; leave out torchrun, or the flag.")
    import torch
    import torch.distributed as dist

    from rankwise.pack.step.processes import Processes
    from rankwise.train.machine.device import find_device

    on_gpu = find_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def with_processes(make: "ExperimentFactory", processes: "Processes") -> "ExperimentFactory":
    """Make the experiment's factory have each batch shared by these processes."""

    def make_together(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        experiment = make(observers, base)
        problem = experiment.problem
        observers.message(f"{processes.size} processes train together, each on its part of every batch.")
        return replace(experiment, problem=replace(problem, feed=replace(problem.feed, processes=processes)))

    return make_together


def train_beside(make: "ExperimentFactory") -> int:
    """Train with the first process, which alone shows and writes; return the exit code."""
    from rankwise.experiment import run_experiment
    from rankwise.train.events import Observers

    try:
        run_experiment(make, None, Observers([]))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK
