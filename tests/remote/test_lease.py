"""One holder at a time, whatever the others do: claims, beats, takeovers."""

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from rankwise.errors import BusyError
from rankwise.remote import lease as leases
from rankwise.remote.lease import HELD_FOR, Lease, beating, machine
from rankwise.remote.store import ObjectStore


class Clock:
    """The store's clock, moved by hand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        self._put: dict[str, float] = {}
        write, modified = ObjectStore.write, ObjectStore.modified

        def noted(store: ObjectStore, name: str, data: bytes) -> None:
            write(store, name, data)
            self._put[name] = self.passed

        start: list[object] = []

        def at(store: ObjectStore, name: str) -> object:
            start[:] = start or [modified(store, name)]
            modified(store, name)  # which may be gone
            return start[0] + timedelta(seconds=self._put[name])  # pyright: ignore

        patch.setattr(ObjectStore, "write", noted)
        patch.setattr(ObjectStore, "modified", at)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"memory://{tmp_path.name}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def lease_in(store: ObjectStore) -> Lease:
    return Lease(store, "run/.lock", "The run")


def test_a_second_is_refused_until_the_first_is_released(store: ObjectStore) -> None:
    first = lease_in(store)
    first.take()
    with pytest.raises(BusyError, match=rf"The run is in use by another run of rankwise \(process {os.getpid()} on "):
        lease_in(store).take()
    assert len(store.names()) == 2, "a claim and its beat; the second left nothing"
    first.release()
    assert store.names() == []
    lease_in(store).take()


def test_a_holder_that_does_not_answer_is_replaced_and_notices(store: ObjectStore, clock: Clock) -> None:
    first, second = lease_in(store), lease_in(store)
    first.take()
    clock.passed = HELD_FOR - 1
    with pytest.raises(BusyError):
        second.take()
    clock.passed = HELD_FOR
    second.take()
    with pytest.raises(BusyError, match="taken over by process"):
        first.check()
    second.check()
    first.beat()  # as a paused process does that goes on
    second.check()
    first.release()
    second.check()
    second.release()
    assert store.names() == []
    third = lease_in(store)
    third.take()  # with the first claim's number again
    with pytest.raises(BusyError, match="taken over"):
        first.check()


def test_beats_keep_it(store: ObjectStore, clock: Clock) -> None:
    first = lease_in(store)
    first.take()
    for _ in range(3):
        clock.passed += HELD_FOR - 1
        first.beat()
        with pytest.raises(BusyError):
            lease_in(store).take()


def test_of_many_that_find_it_old_one_takes_it(
    store: ObjectStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_in(store).take()
    clock.passed = HELD_FOR
    together, won, one = threading.Barrier(8), list[Lease](), threading.Lock()
    create = ObjectStore.create

    def created(store: ObjectStore, name: str, data: bytes) -> bool:
        with one:  # as a store does by itself; fsspec's memory is made for one thread
            return create(store, name, data)

    monkeypatch.setattr(ObjectStore, "create", created)

    def run() -> None:
        mine = lease_in(store)
        together.wait()
        try:
            mine.take()
        except BusyError:
            return
        won.append(mine)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].check()
    won[0].release()
    assert store.names() == []


@pytest.mark.skipif(not machine(), reason="this system does not tell which machine it is")
def test_a_process_of_this_machine_that_has_ended_holds_nothing(store: ObjectStore) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    lease_in(store).take()
    (claim,) = [name for name in store.names() if "claim" in name]
    held = json.loads(store.read(claim))
    store.write(claim, json.dumps({**held, "pid": ended.pid, "machine": "another"}).encode())
    with pytest.raises(BusyError):
        lease_in(store).take()
    store.write(claim, json.dumps({**held, "pid": ended.pid}).encode())
    lease_in(store).take()


def test_a_holder_is_interrupted_once_another_has_taken_it(
    store: ObjectStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_EVERY", 0.01)
    lost = threading.Event()
    first = lease_in(store)
    with beating(first, lost.set):
        assert not lost.wait(0.05)
        clock.passed = 2 * HELD_FOR
        monkeypatch.setattr(Lease, "_lives", lambda *arguments: False)  # it beats too quickly to grow old
        second = lease_in(store)
        second.take()
        assert lost.wait(10)
    second.check()
    second.release()
    assert store.names() == []
