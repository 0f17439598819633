"""Runs on an object store (fsspec's memory) come to what runs in a folder come to, wherever they are interrupted."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.errors import OutputError
from rankwise.pack.pack import Pack
from rankwise.remote import lease, mirror
from rankwise.remote.lease import Holder, Lease, beating
from rankwise.remote.store import ObjectStore
from rankwise.results import read_results
from rankwise.sweeps.storage.working_copy import _copies
from tables_only import write_tables
from test_cli import folder_of_digits, refused
from test_resume import contents

FLAGS = ["--ranks", "1,2", "--seeds", "1", "--lr", "3e-2", "--baseline-lr", "1e-2", "--batch-size", "16"]
FLAGS += ["--epochs", "2", "--rungs", "1", "--plan", "grid", "--quiet"]
OFTEN = ["--checkpoint-epochs", "1"]

Put = tuple[str, bytes | None]
"""A change of a store: the name of an object, and what it is now."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("local") / "run"
    assert main(["digits", *FLAGS, "--data", str(data), "--out", str(out)]) == 0
    return contents(out)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"memory://{tmp_path.name}/run")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "LOOK_EVERY", 0.005)


def contents_of(store: ObjectStore, folder: Path) -> dict[str, Any]:
    for name in store.names():
        if not name.endswith((".png", ".svg")):
            store.download(name, folder / name)
    return contents(folder)


def fills(store: ObjectStore, changes: list[Put]) -> None:
    for name, data in changes:
        store.remove([name]) if data is None else store.write(name, data)


def noted(patch: pytest.MonkeyPatch, store: ObjectStore) -> list[Put]:
    """All changes of a store from now on, without locks."""
    changes: list[Put] = []
    upload, remove = ObjectStore.upload, ObjectStore.remove

    def uploads(self: ObjectStore, path: Path, name: str) -> None:
        upload(self, path, name)
        changes.append((name, store.read(name)))

    def removes(self: ObjectStore, names: list[str]) -> None:
        remove(self, names)
        changes.extend((name, None) for name in names if ".lock/" not in name)

    patch.setattr(ObjectStore, "upload", uploads)
    patch.setattr(ObjectStore, "remove", removes)
    return changes


def test_a_run(
    store: ObjectStore,
    data: Path,
    tmp_path: Path,
    in_a_folder: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = ["digits", *FLAGS, "--data", str(data), "--out", store.url]
    assert main(new) == 0
    printed = capsys.readouterr()
    assert f"{store.url}/table.md" in printed.out
    assert "/rankwise-" not in printed.out + printed.err, "the local copy is nobody's business"
    assert contents_of(store, tmp_path / "copy") == in_a_folder
    assert not [name for name in store.names() if "lock" in name or name.startswith("checkpoints")]
    assert "/rankwise-" not in store.read("results.json").decode()
    assert read_results(store.url) == read_results(tmp_path / "copy")

    line = refused(capsys, *new)
    assert f"{store.url} holds results already" in line
    monkeypatch.setattr("rankwise.report.write_report", write_tables)
    store.remove(["table.md"])
    assert main(["report", store.url]) == 0
    assert "table.md" in store.names()
    adapter = next(run.adapter for run in read_results(store.url).runs if run.adapter)
    assert main(["inspect", f"{store.url}/{adapter}"]) == 0
    assert "r = " in capsys.readouterr().out
    answer = read_results(store.url).answer
    assert answer is not None
    chosen = answer.verdict != "undecided" and answer.adapter
    assert main(["inspect", f"{store.url}/best"]) == (0 if chosen else 2)
    assert f"{store.url}/nothing" in refused(capsys, "inspect", f"{store.url}/nothing")
    assert "takes a path of this machine" in refused(capsys, "merge", adapter or "", "--out", "s3://bucket/merged")
    assert contents_of(store, tmp_path / "again") == in_a_folder, "reading has changed nothing"


def test_what_is_read_of_a_run(
    store: ObjectStore, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its small adapter and its cut one had been shown to do."""
    assert main(["digits", *FLAGS, "--data", str(data), "--out", store.url]) == 0
    monkeypatch.setattr("rankwise.report.write_report", write_tables)
    line = refused(capsys, "resize", f"{store.url}/best", "--rank", "1", "--out", str(tmp_path / "smaller"))
    assert "recommends no adapter, so there is no" in line
    assert "recommends no adapter to ship" in refused(capsys, "inspect", f"{store.url}/ship")
    results = json.loads(store.read("results.json"))
    adapters = [run["adapter"] for run in results["runs"] if run["adapter"]]
    results["answer"] |= {"verdict": "shown", "adapter": adapters[0]}
    results["compressed"]["ship"] |= {"verdict": "shown", "adapter": adapters[1]}
    store.write("results.json", json.dumps(results).encode())
    for link, adapter in (("best", adapters[0]), ("ship", adapters[1])):
        assert main(["inspect", f"{store.url}/{link}"]) == 0
        assert f"{store.url}/{adapter}: " in capsys.readouterr().out
    other = f"{store.url}-2"
    fills(ObjectStore(other), [(name, store.read(name)) for name in store.names()])
    assert main(["compare", store.url, other]) == 0
    assert "/rankwise-" not in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["report", store.url, "--subspaces"]) == 0
    assert "subspaces.png" in store.names()


def test_units_in_processes_that_share_nothing_else(
    store: ObjectStore, data: Path, tmp_path: Path, in_a_folder: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", *FLAGS, "--data", str(data), "--out", store.url, "--prepare", "--max-workers", "2"]) == 0
    assert capsys.readouterr().out == "0-1\n"
    while (code := main(["work", store.url, "--next", "--quiet"])) == 0:
        first, _, last = capsys.readouterr().out.strip().partition("-")
        for number in range(int(first), int(last or first) + 1):
            assert main(["work", store.url, "--pack", str(number), "--quiet"]) == 0
    assert code == 10
    assert contents_of(store, tmp_path / "copy") == in_a_folder
    assert not [name for name in store.names() if name.startswith("checkpoints")]
    assert main(["work", store.url, "--next"]) == 10
    assert f"see {store.url}/table.md" in capsys.readouterr().err


def test_who_may_work_at_the_same_time(store: ObjectStore, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digits", *FLAGS, "--data", str(data), "--out", store.url, "--prepare"]) == 0
    unit = Lease(store, "checkpoints/units/000000/.rankwise.lock", "Unit 0")
    before = store.names()
    with beating(unit, lambda: None):
        assert main(["work", store.url, "--pack", "0", "--quiet"]) == 75
        assert main(["work", store.url, "--next", "--quiet"]) == 0, "which decides and trains nothing"
        assert f"Unit 0 of {store.url} is being trained by process {os.getpid()}" in refused(
            capsys, "digits", "--resume", store.url
        )
    for action, code in (("train", 75), ("decide", 0)):
        with beating(Lease(store, ".rankwise.lock", store.url, action), lambda: None):
            assert main(["work", store.url, "--next", "--quiet"]) == 75
            assert "is in use by another run of rankwise" in refused(capsys, "digits", "--resume", store.url)
            if code:
                assert main(["work", store.url, "--pack", "0", "--quiet"]) == code
    assert store.names() == before
    assert "There is no unit 7 in " in refused(capsys, "work", store.url, "--pack", "7")
    assert "the units there are 0" in refused(capsys, "work", store.url, "--pack", "7")


def changes_of_a_run(store: ObjectStore, data: Path, patch: pytest.MonkeyPatch) -> list[Put]:
    with patch.context() as inner:
        changes = noted(inner, store)
        assert main(["digits", *FLAGS, *OFTEN, "--data", str(data), "--out", store.url]) == 0
    return changes


def resumes(tmp_path: Path, data: Path, changes: list[Put]) -> tuple[str, dict[str, Any]]:
    """Take up what a process has left that was killed after these changes."""
    left = ObjectStore(f"memory://{tmp_path.name}/{len(changes)}/run")
    fills(left, changes)
    copy = tmp_path / f"copy-{len(changes)}"
    if main(["digits", "--resume", left.url, "--quiet"]) == 0:
        return "resumed", contents_of(left, copy)
    finished = "results.json" in left.names()
    there = contents_of(left, copy) if finished else {}
    assert main(["digits", *FLAGS, "--data", str(data), "--out", left.url, "--overwrite"]) == 0
    if not finished:
        return "again", contents_of(left, copy)
    # Some of what it was resumed from is left; the next run there removes it.
    assert not [name for name in left.names() if name.startswith("checkpoints")]
    return "finished", {name: value for name, value in there.items() if not name.startswith("checkpoints")}


@pytest.mark.usefixtures("quick")
def test_a_run_killed_after_a_checkpoint(
    store: ObjectStore, data: Path, tmp_path: Path, in_a_folder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = changes_of_a_run(store, data, monkeypatch)
    checkpoints = [i for i, (name, _) in enumerate(changes) if "checkpoint-0" in name]
    assert resumes(tmp_path, data, changes[: checkpoints[0] + 1]) == ("resumed", in_a_folder)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_run_killed_at_any_moment(
    store: ObjectStore, data: Path, tmp_path: Path, in_a_folder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = changes_of_a_run(store, data, monkeypatch)
    actions = [resumes(tmp_path, data, changes[:n]) for n in range(len(changes) + 1)]
    assert all(there == in_a_folder for _, there in actions)
    assert {action for action, _ in actions} == {"resumed", "finished", "again"}


@pytest.mark.parametrize("begun", [pytest.param("new", marks=pytest.mark.slow), "extended", "overwritten"])
def test_a_run_killed_while_its_results_come_in_place(
    begun: str, store: ObjectStore, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks for something new, so that what stands for a moment only may never be seen."""
    out, before = tmp_path / "folder", list[Put]()
    new = [*FLAGS, "--data", str(data), "--out"]
    run = ["--resume", store.url, "--more-seeds", "1", "--quiet"] if begun == "extended" else [*new, store.url]
    if begun != "new":
        first = new if begun == "extended" else [*FLAGS, "--ranks", "1", "--data", str(data), "--out"]
        assert main(["digits", *first, store.url]) == 0
        before = [(name, store.read(name)) for name in store.names()]
        run += ["--overwrite"] * (begun == "overwritten")
    with monkeypatch.context() as inner:
        changes = noted(inner, store)
        assert main(["digits", *run]) == 0
    assert main(["digits", *new, str(out)]) == 0
    if begun == "extended":
        assert main(["digits", "--resume", str(out), "--more-seeds", "1", "--quiet"]) == 0
    names = [name for name, _ in changes]
    moments = range(names.index("checkpoints/placing.json") + 1, names.index("results.json") + 2)
    assert len(moments) >= 7
    for moment in (moments[0], moments[1], moments[len(moments) // 2], moments[-1]):
        left = ObjectStore(f"{store.url}-{moment}")
        fills(left, before + changes[:moment])
        assert main(["digits", "--resume", left.url, "--quiet"]) == 0
        assert contents_of(left, tmp_path / str(moment)) == contents(out)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", ["changed", "cut", "lost"])
def test_an_object_that_the_store_has_damaged_or_lost_costs_a_checkpoint(
    store: ObjectStore,
    data: Path,
    tmp_path: Path,
    in_a_folder: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    changes = changes_of_a_run(store, data, monkeypatch)
    manifests = [i for i, (name, put) in enumerate(changes) if "checkpoint-0" in name and put is not None]
    assert len(manifests) > 1
    left = changes[: manifests[1] + 1]
    name, put = next((name, put) for name, put in reversed(left) if name.endswith(".safetensors") and put)
    damaged = {"changed": put[:-1] + bytes([put[-1] ^ 1]), "cut": put[:-1], "lost": None}[damage]
    assert resumes(tmp_path, data, [*left, (name, damaged)]) == ("resumed", in_a_folder)


def until_it_ends(name: str) -> None:
    while any(thread.name == name for thread in threading.enumerate()):
        sleep(0.001)


def at_a_step(patch: pytest.MonkeyPatch, nth: int, action: Callable[[], object]) -> None:
    steps, step = [0], Pack.update

    def steps_on(self: Pack, *arguments: Any, **options: Any) -> Any:
        steps[0] += 1
        if steps[0] == nth:
            action()
        return step(self, *arguments, **options)

    patch.setattr(Pack, "update", steps_on)


@pytest.mark.usefixtures("quick")
def test_a_store_that_does_not_answer_for_a_while(
    store: ObjectStore,
    data: Path,
    tmp_path: Path,
    in_a_folder: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload, failures = ObjectStore.upload, [3]

    def fails(self: ObjectStore, path: Path, name: str) -> None:
        if failures[0] > 0:
            failures[0] -= 1
            raise OutputError(f"{self.url} can't be written (it slept).")
        upload(self, path, name)

    monkeypatch.setattr(ObjectStore, "upload", fails)
    assert main(["digits", *FLAGS, *OFTEN, "--data", str(data), "--out", store.url]) == 0
    assert capsys.readouterr().err.count("can't be written (it slept). Training continues, and it is tried again.") == 1
    assert contents_of(store, tmp_path / "copy") == in_a_folder


@pytest.mark.usefixtures("quick")
def test_a_worker_whose_unit_was_taken_over_writes_nothing_more(
    store: ObjectStore, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["digits", *FLAGS, *OFTEN, "--data", str(data), "--out", store.url, "--prepare"]) == 0
    lock = "checkpoints/units/000000/.rankwise.lock"
    before = {name: store.read(name) for name in store.names()}
    other = Lease(store, lock, "Unit 0")
    monkeypatch.setattr(lease, "BEAT_EVERY", 0.005)
    went_on: list[bool] = []

    def takes_over() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Holder, "has_ended", property(lambda holder: True))
            other.take()
        until_it_ends("rankwise-lease")
        (_copies.get()[-1].folder / "found.json").write_text("{}")  # as a checkpoint does, so that the mirror looks
        until_it_ends("rankwise-mirror")  # it notices as well
        went_on.append(True)

    at_a_step(monkeypatch, 1, takes_over)
    assert main(["work", store.url, "--pack", "0", "--quiet"]) == 75
    assert went_on, "the step under way is not interrupted"
    said = capsys.readouterr().err
    assert "Stopped; unit 0 continues where it is" in said
    assert f"Unit 0 of {store.url} was taken over by process {os.getpid()}" in said
    after = {name: store.read(name) for name in store.names() if lock not in name}
    new = {name for name in after if before.get(name) != after[name]}
    assert not new or all("checkpoint-" in name or "-pack-" in name for name in new), "as before the takeover"
    assert not any(name.endswith("done.json") for name in after)
    other.check()


def test_places_that_can_not_be_used(store: ObjectStore, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ["digits", *FLAGS, "--data", str(data), "--out"]
    assert 'needs the package "gcsfs", of the extra "gs"' in refused(capsys, *new, "gs://bucket/run")
    store.write("notes.txt", b"mine")
    assert f"{store.url} holds notes.txt" in refused(capsys, *new, store.url)
    assert store.names() == ["notes.txt"]
    assert "that all of its machines see" in refused(capsys, *new, "memory://run", "--ray", "auto")
