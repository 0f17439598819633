"""The address of a Ray cluster: what doesn't answer is refused soon, before anything costly."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rankwise.errors import ConfigError
from rankwise.sweeps.run.units import address as addresses
from rankwise.sweeps.run.units.address import check_address, running_cluster


@contextmanager
def server(answer: Callable[[socket.socket], object]) -> Generator[str]:
    """The address of a server that answers one connection."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            held.append(listening.accept()[0])
            answer(held[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()
        for connection in held:
            connection.close()


def test_a_server_that_never_answers_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "ANSWERS_IN", 0.05)
    with (
        server(lambda connection: None) as address,
        pytest.raises(ConfigError, match=rf"Nothing answers at the Ray address {address} \(timed out\)"),
    ):
        check_address(address)


def test_another_server_is_refused() -> None:
    with (
        server(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address,
        pytest.raises(ConfigError, match="it is not a Ray cluster's head"),
    ):
        check_address(address)
    with server(lambda connection: connection.close()) as address, pytest.raises(ConfigError, match="Ray address"):
        check_address(address)


SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def test_a_grpc_server_is_taken() -> None:
    # What the head of a cluster of ray 2.60.0 answers, after its settings.
    refusal = b"\x00\x000\x01\x05\x00\x00\x00\x01\x88@\x0ccontent-type\x10application/grpc@\x0bgrpc-status\x0212"

    def answer(connection: socket.socket) -> None:
        asked = connection.recv(4096)
        assert asked.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
        connection.sendall(SETTINGS)
        connection.sendall(refusal)

    with server(answer) as address:
        check_address(address)


def test_another_http_2_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "ANSWERS_IN", 0.05)
    with (
        server(lambda connection: connection.sendall(SETTINGS)) as address,
        pytest.raises(ConfigError, match="it is not a Ray cluster's head"),
    ):
        check_address(address)


@pytest.mark.parametrize("address", ["head", "ray://head:10001", ":6379", "head:port", "http://head:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f'The Ray address is "{address}"; give local, auto, or host:port'):
        check_address(address)


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "127.0.0.1:99999"])
def test_an_address_that_leads_nowhere_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"Nothing answers at the Ray address {address}"):
        check_address(address)


def test_auto_is_the_cluster_of_the_environment_or_the_last_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert running_cluster() == "auto"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert running_cluster() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert running_cluster() == "head:6379"


def test_it_is_known_before_anything_is_loaded(tmp_path: Path) -> None:
    """Importing torch alone takes seconds on a busy machine, and a large model minutes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{one.getsockname()[1]}"
    command = ["digits", "--ranks", "1", "--out", str(tmp_path / "out"), "--ray", closed]
    code = f"import sys; from rankwise.cli import main; print(main({command!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
    assert len(done.stderr.splitlines()) == 1
