"""A Ray cluster: joining it, its size, and what its machines see and have installed."""

import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, option
from rankwise.locking import LOCK
from rankwise.sweeps.provenance import versions
from rankwise.sweeps.run.units.address import ANSWERS_IN, LOCAL, answering

MACHINES_IN = 60.0
"""Seconds in which the machines of a cluster must start a first task; those that don't are checked when they train."""


def join_cluster(address: str) -> bool:
    """Join a cluster, unless this process has joined one.

    Args:
        address: As `rankwise.Ray` takes it.

    Returns:
        Whether it was joined now.

    Raises:
        ConfigError: Nothing answers there, or not a cluster that can be joined.
    """
    import ray  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = answering(address)
    if address == LOCAL:
        ray.init(address=LOCAL, include_dashboard=False, **options)
        return True
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The Ray cluster at {address} can't be joined ({' '.join(str(error).split())[:200]}); start one with "
            f"`ray start --head`, or use this machine alone with the address {LOCAL}."
        ) from error
    return True


@dataclass(frozen=True)
class Node:
    """The size of a machine of a cluster.

    Args:
        cpus: Its CPUs.
        gpus: Its GPUs.
    """

    cpus: float
    gpus: float

    def room(self, cpus: float, gpus: float) -> int:
        """How many workers of this size have room there.

        Examples:
            >>> Node(8, 2).room(2, 1), Node(8, 2).room(2, 0), Node(8, 0).room(2, 0.5), Node(3, 1).room(1, 0.5)
            (2, 4, 0, 2)
        """
        return int(min(self.cpus // cpus, self.gpus // gpus if gpus else math.inf))


def nodes() -> list[Node]:
    """The machines of the cluster that are there now; just after joining, their sizes may be unknown."""
    import ray  # pyright: ignore[reportMissingImports]

    end = time.monotonic() + ANSWERS_IN
    while True:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive]
        if any(node.cpus for node in found) or time.monotonic() > end:
            return found or [Node(0.0, 0.0)]
        time.sleep(0.1)


@dataclass(frozen=True)
class Machine:
    """What a machine of a cluster sees and has installed.

    Args:
        host: Its name.
        holder: The content of the run directory's lock file there; None where there is none.
        versions: Of what a result depends on.
    """

    host: str
    holder: str | None
    versions: Mapping[str, str]


def this_machine(directory: Path) -> Machine:
    """Describe the machine that calls this.

    Args:
        directory: The run directory, which the driver holds locked.
    """
    path = directory / LOCK
    return Machine(platform.node(), path.read_text() if path.exists() else None, versions())


def machines(directory: Path) -> list[Machine]:
    """Describe every machine of the cluster that answers soon.

    Raises:
        ConfigError: Rankwise can't be imported on one.
    """
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

    describe: Any = ray.remote(num_cpus=0, max_retries=0)(this_machine)
    hosts: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            hosts[describe.options(scheduling_strategy=here).remote(directory)] = node["NodeManagerHostname"]
    ready: Any = ray.wait([*hosts], num_returns=len(hosts), timeout=MACHINES_IN)
    found: list[Machine] = []
    for one in ready[0]:
        try:
            found.append(ray.get(one))
        except RayError as error:
            if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
                raise ConfigError(
                    f"rankwise can't be imported on {hosts[one]}, a machine of the Ray cluster; install it there, in "
                    "the environment that Ray runs in."
                ) from error
            # A machine that has gone; there may be others.
    return found


def compare(there: Sequence[Machine], here: Machine, directory: Path) -> list[str]:
    """Compare the machines of a cluster with the driver's.

    Args:
        there: The cluster's.
        here: The driver's.
        directory: The run directory.

    Returns:
        What may change the last bits of results, in words.

    Raises:
        ConfigError: One of them can't read the run directory.

    Examples:
        >>> here = Machine("a", "process 1 on a", {"torch": "2.13"})
        >>> there = [here, Machine("b", "process 1 on a", {"torch": "2.9"})]
        >>> compare(there, here, Path("runs/1"))
        ['b has torch 2.9, and this machine 2.13; the last bits of results may depend on that.']
    """
    for machine in there:
        if machine.holder != here.holder:
            raise ConfigError(
                f"{directory} can't be reached from {machine.host}, where workers would run; give {option('out')} on a "
                "file system that all machines share, under the same path."
            )
    notes: list[str] = []
    for machine in there:
        other = {name: found for name, found in machine.versions.items() if found != here.versions.get(name)}
        if other:
            theirs = ", ".join(f"{name} {found}" for name, found in other.items())
            ours = ", ".join(str(here.versions.get(name)) for name in other)
            notes.append(
                f"{machine.host} has {theirs}, and this machine {ours}; the last bits of results may depend on that."
            )
    return list(dict.fromkeys(notes))
