"""Runs on S3: moto's server on loopback, stopped for a while in the middle; workers that are processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fresh
from rankwise.cli import main
from rankwise.remote.lease import Lease
from rankwise.remote.store import ObjectStore
from rankwise.results import read_results
from s3_commands import rankwise_at
from test_cli import folder_of_digits, refused
from test_cli_remote import contents_of
from test_resume import contents

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # those of botocore and moto

FLAGS = ["--ranks", "1,2", "--seeds", "1", "--lr", "1e-2,3e-2", "--baseline-lr", "1e-2", "--batch-size", "4"]
FLAGS += ["--epochs", "6", "--rungs", "2", "--plan", "grid", "--checkpoint-epochs", "1", "--quiet"]


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    address: str

    def pause(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "any")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            import fsspec

            fsspec.filesystem("s3").mkdir("runs")
            yield Server(process, f"http://127.0.0.1:{port}")
        process.kill()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("local") / "run"
    assert main(["digits", *FLAGS, "--data", str(data), "--out", str(out)]) == 0
    return contents(out)


def begins(*arguments: str) -> AbstractContextManager[fresh.Running]:
    """Start a command in its own process."""
    return fresh.start(rankwise_at, dict(os.environ), *arguments)


def waits_for(store: ObjectStore, part: str) -> None:
    end = time.monotonic() + 300
    while not any(part in name for name in store.names()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_stops_for_five_seconds_in_the_middle(
    server: Server, data: Path, tmp_path: Path, in_a_folder: dict[str, Any]
) -> None:
    store = ObjectStore("s3://runs/paused/run")
    with begins("digits", *FLAGS, "--data", str(data), "--out", store.url) as running:
        waits_for(store, "checkpoints/checkpoint-")
        server.pause(5)
        ended = running.end()
    assert ended.returncode == 0, ended.stderr
    assert contents_of(store, tmp_path / "copy") == in_a_folder
    assert not [name for name in store.names() if "lock" in name or name.startswith("checkpoints")]
    assert read_results(store.url).runs


def test_a_killed_run_is_resumed_by_another_process(
    server: Server, data: Path, tmp_path: Path, in_a_folder: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore("s3://runs/killed/run")
    with begins("digits", *FLAGS, "--data", str(data), "--out", store.url) as running:
        waits_for(store, "checkpoints/checkpoint-")
        running.process.kill()
        running.process.join()
    assert Lease(store, ".rankwise.lock", "").holder() is not None, "it could not release it"
    assert main(["digits", "--resume", store.url, "--quiet"]) == 0
    assert contents_of(store, tmp_path / "copy") == in_a_folder


def test_units_at_once_and_twice_while_the_server_stops(
    server: Server, data: Path, tmp_path: Path, in_a_folder: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore("s3://runs/units/run")
    new = ["digits", *FLAGS, "--data", str(data), "--out", store.url, "--prepare", "--max-workers", "2"]
    assert main(new) == 0
    capsys.readouterr()
    paused = False
    while (code := main(["work", store.url, "--next", "--quiet"])) == 0:
        first, _, last = capsys.readouterr().out.strip().partition("-")
        numbers = [str(number) for number in range(int(first), int(last or first) + 1)]
        with ExitStack() as stack:
            twice = [
                stack.enter_context(begins("work", store.url, "--pack", number, "--quiet"))
                for number in [*numbers, *numbers]
            ]
            if not paused:
                waits_for(store, f"units/{int(first):06}/checkpoint-")
                server.pause(5)
                paused = True
            assert {one.end().returncode for one in twice} <= {0, 75}
        assert all(main(["work", store.url, "--pack", number, "--quiet"]) == 0 for number in numbers)
    assert code == 10
    assert contents_of(store, tmp_path / "copy") == in_a_folder


def test_one_of_two_processes_creates(server: Server) -> None:
    store = ObjectStore("s3://runs/created")
    assert store.create("claim", b"mine")
    assert not store.create("claim", b"theirs")
    assert store.read("claim") == b"mine"


def test_a_bucket_that_is_not_there(server: Server, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "digits", *FLAGS, "--data", str(data), "--out", "s3://none-here/run")
    assert "s3://none-here/run can't be written (The specified bucket does not exist)." in line
    assert os.environ["AWS_ENDPOINT_URL"] == server.address
