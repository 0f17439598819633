"""Objects under a URL, in fsspec's memory."""

import sys
from pathlib import Path

import pytest

from rankwise.errors import ConfigError, OutputError
from rankwise.remote.store import ObjectStore, url_of


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"memory://{tmp_path.name}/run")


def test_objects_are_put_listed_read_and_removed(store: ObjectStore, tmp_path: Path) -> None:
    assert store.names() == []
    store.write("a.json", b"1")
    store.write("a.json", b"2")
    (tmp_path / "file").write_bytes(b"3")
    store.upload(tmp_path / "file", "deep/er/b")
    assert store.names() == ["a.json", "deep/er/b"]
    assert store.names("deep") == ["deep/er/b"]
    assert store.read("a.json") == b"2"
    store.download("deep/er/b", tmp_path / "new" / "b")
    assert (tmp_path / "new" / "b").read_bytes() == b"3"
    assert store.modified("a.json") <= store.modified("deep/er/b")
    store.remove(["a.json", "none", "deep/er/b"])
    assert store.names() == []


def test_one_of_two_creates(store: ObjectStore) -> None:
    assert store.create("claim", b"mine")
    assert not ObjectStore(store.url).create("claim", b"theirs")
    assert store.read("claim") == b"mine"


def test_what_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("none")
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "none", "none")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://a/b", "nonsense://a/b can't be used .*; give a local path, or s3://bucket/folder"),
        ("file:///tmp/run", "file:///tmp/run is on this machine; give its path, /tmp/run"),
    ],
)
def test_urls_that_can_not_be_used(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectStore(url)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry  # pyright: ignore[reportPrivateUsage]

    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    message = r's3://bucket/run needs the package "s3fs", of the extra "s3": run pip install "\.\[s3\]"'
    with pytest.raises(ConfigError, match=message):
        ObjectStore("s3://bucket/run")


def test_errors_of_a_store_are_one_line(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no\nanswer")

    monkeypatch.setattr(store._files, "pipe_file", fail)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(OutputError, match=r"run can't be written \(no answer\)\.$"):
        store.write("a", b"")


def test_paths_are_no_urls() -> None:
    places = ["runs/last", "/tmp/run", Path("a:/b"), "user@host:run", ".", "https-notes/x"]
    assert [url_of(place) for place in places] == [None] * len(places)
    assert url_of(Path("gs://bucket/a run")) == "gs://bucket/a run"
