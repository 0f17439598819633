"""The address of a Ray cluster: which one is meant, and whether it answers. It needs neither Ray nor torch."""

import os
import socket
import time
from importlib.util import find_spec
from pathlib import Path

from rankwise.errors import ConfigError

LOCAL, AUTO = "local", "auto"

ANSWERS_IN = 5.0
"""Seconds in which an address must answer."""

GRPC = b"application/grpc"
"""In every answer of a gRPC server, as the head of a Ray cluster is one."""


def require_ray() -> None:
    """Refuse workers on Ray where it isn't installed.

    Raises:
        ConfigError: It isn't.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            'Workers on Ray need the package "ray", of the extra "ray": run pip install ".[ray]" in a checkout.'
        )


def answering(address: str) -> str:
    """The address of a cluster that answers, as far as that can be known without joining it.

    Args:
        address: As `rankwise.Ray` takes it.

    Raises:
        ConfigError: Nothing answers there.
    """
    address = running_cluster() if address == AUTO else address
    if address not in (LOCAL, AUTO):
        check_address(address)
    return address


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
        while GRPC not in answer and _may_be_http_2(answer):
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


def _may_be_http_2(answer: bytes) -> bool:
    """Whether the first frame is one of settings, with which every HTTP/2 server begins: RFC 9113, section 3.4."""
    return len(answer) < 4 or answer[3] == 4


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
