"""A Ray cluster: joining it, its size, and what its machines see and have installed."""

import logging
import math
import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, option
from rankwise.locking import LOCK
from rankwise.sweeps.provenance import versions

LOCAL, AUTO = "local", "auto"

ANSWERS_IN = 5.0
"""Seconds in which an address must answer."""

MACHINES_IN = 60.0
"""Seconds in which the machines of a cluster must start a first task; those that don't are checked when they train."""

GRPC = b"application/grpc"
"""In every answer of a gRPC server, as the head of a Ray cluster is one."""


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
    address = running_cluster() if address == AUTO else address
    if address == LOCAL:
        ray.init(address=LOCAL, include_dashboard=False, **options)
        return True
    if address != AUTO:
        check_address(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The Ray cluster at {address} can't be joined ({' '.join(str(error).split())[:200]}); start one with "
            f"`ray start --head`, or use this machine alone with the address {LOCAL}."
        ) from error
    return True


def running_cluster() -> str:
    """The address of RAY_ADDRESS, or of the last cluster that was started on this machine; "auto" where there is none.

    Ray would look there too, and then wait for a cluster that has gone.
    """
    started = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    given = os.environ.get("RAY_ADDRESS")
    return given or (started.read_text().strip() if started.is_file() else "") or AUTO


def check_address(address: str) -> None:
    """Refuse an address where no gRPC server answers soon: Ray itself would try for minutes.

    Raises:
        ConfigError: None does, or it is none that can be used.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConfigError(
            f'The Ray address is "{address}"; give {LOCAL}, {AUTO}, or host:port of the cluster\'s head, on one of its '
            "machines (elsewhere, use `ray job submit`)."
        )
    try:
        answer = _asked(host.strip("[]"), int(port))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Nothing answers at the Ray address {address} ({getattr(error, 'strerror', None) or error}); give the "
            f"address that `ray start --head` printed, or use this machine alone with the address {LOCAL}."
        ) from error
    if GRPC not in answer:
        raise ConfigError(
            f"A server answers at the Ray address {address}, and it is not a Ray cluster's head; give the address that "
            "`ray start --head` printed."
        )


def _asked(host: str, port: int) -> bytes:
    """The answer to a call that no server knows, as far as it comes soon."""
    answer = b""
    with socket.create_connection((host, port), ANSWERS_IN) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return GRPC  # only Ray has the certificates
        connection.sendall(_call(host))
        end = time.monotonic() + ANSWERS_IN
        while GRPC not in answer:
            connection.settimeout(max(0.001, end - time.monotonic()))
            try:
                more = connection.recv(4096)
            except TimeoutError:
                if not answer:
                    raise
                break
            if not more:
                break
            answer += more
    return answer


def _call(host: str) -> bytes:
    """A gRPC call as the beginning of an HTTP/2 connection: RFC 9113, sections 3.4 and 6, and RFC 7541, appendix A."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def text(value: bytes) -> bytes:
        return bytes([len(value)]) + value

    method, path, authority = b"\x83\x86", b"\x04" + text(b"/rankwise/ping"), b"\x01" + text(host.encode())
    content = b"\x0f\x10" + text(GRPC) + b"\x00" + text(b"te") + text(b"trailers")
    headers = frame(1, 5, 1, method + path + authority + content)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + headers


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
