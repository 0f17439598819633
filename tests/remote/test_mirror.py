"""A folder and its copy in a store, while files and folders come and go."""

import os
import threading
from pathlib import Path

import pytest

from rankwise.errors import OutputError
from rankwise.remote.lease import Lease
from rankwise.remote.mirror import Mirror
from rankwise.remote.store import ObjectStore


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    store = ObjectStore(f"memory://{tmp_path.name}/run")
    return Mirror(store, tmp_path / "run", skipped=lambda name: ".lock" in name, waits=lambda name: "log" in name)


def put(mirror: Mirror, name: str, content: str, at: int | None = None) -> None:
    path = mirror.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    if at is not None:
        os.utime(path, ns=(at, at))


def test_files_are_put_in_the_order_of_their_writing_and_removed_last(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    upload, remove = ObjectStore.upload, ObjectStore.remove
    monkeypatch.setattr(ObjectStore, "upload", lambda self, path, name: (done.append(name), upload(self, path, name)))
    monkeypatch.setattr(ObjectStore, "remove", lambda self, names: (done.append(f"-{names[0]}"), remove(self, names)))
    put(mirror, "old.json", "0", 1)
    assert mirror.push()
    done.clear()
    (mirror.folder / "old.json").unlink()
    put(mirror, "a.json", "1", 3_000_000)
    put(mirror, "deep/z.bin", "2", 3_000_000)  # in one tick of the clock
    put(mirror, "x/about.json", "3", 2_000_000)
    put(mirror, ".lock/b", "4")
    assert mirror.push()
    assert done == ["x/about.json", "deep/z.bin", "a.json", "-old.json"]
    assert mirror.store.names() == ["a.json", "deep/z.bin", "x/about.json"]
    done.clear()
    assert mirror.push()
    assert done == []
    put(mirror, "a.json", "changed")
    assert mirror.push()
    assert done == ["a.json"]


def test_what_grows_is_copied_with_the_rest(mirror: Mirror) -> None:
    put(mirror, "log", "1")
    mirror.push(everything=False)
    assert mirror.store.names() == []
    put(mirror, "a", "1")
    mirror.push(everything=False)
    assert mirror.store.names() == ["a", "log"]


def test_placeholders_are_never_copied_back(mirror: Mirror) -> None:
    mirror.store.write("big", b"content")
    mirror.store.write("small", b"content")
    mirror.pull(lambda name: name == "small", placeholders=True)
    assert (mirror.folder / "big").read_bytes() == b""
    assert mirror.push()
    assert mirror.store.read("big") == b"content"
    (mirror.folder / "big").unlink()
    assert mirror.push()
    assert mirror.store.names() == ["small"]


def test_a_folder_that_can_not_be_read_has_not_lost_its_files(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    put(mirror, "deep/a", "1")
    assert mirror.push()
    scandir = os.scandir

    def fails(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fails)
        with pytest.raises(OutputError, match="Permission denied"):
            mirror.push()
    assert mirror.store.names() == ["deep/a"]


def test_folders_that_come_and_go_while_they_are_looked_through(mirror: Mirror) -> None:
    put(mirror, "stays", "1")
    over = threading.Event()

    def comes_and_goes() -> None:
        while not over.is_set():
            put(mirror, "staged/x", "1")
            (mirror.folder / "staged" / "x").unlink()
            (mirror.folder / "staged").rmdir()

    thread = threading.Thread(target=comes_and_goes)
    thread.start()
    try:
        for _ in range(200):
            mirror.push()
    finally:
        over.set()
        thread.join()
    while not mirror.push():
        pass
    assert mirror.store.names() == ["stays"]


def test_nothing_is_written_once_another_has_the_lease(mirror: Mirror) -> None:
    lease = Lease(mirror.store, ".lock", "The run")
    mine = Mirror(mirror.store, mirror.folder, lease=lease)
    put(mirror, "a", "1")
    with pytest.raises(OutputError, match="taken over"):
        mine.push()
    assert mirror.store.names() == []
    lease.take()
    assert mine.push()
    assert "a" in mirror.store.names()
