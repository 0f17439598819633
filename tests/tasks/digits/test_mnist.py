"""Finding and downloading digits, against a real server on the loopback address."""

import contextlib
import gzip
import hashlib
import http.server
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import DataError
from rankwise.results.origin import SplitSize
from rankwise.tasks.digits import mnist
from rankwise.tasks.digits.mnist import Split, cache_directory, fetch_mnist, load_digits_data

NAMES = tuple(mnist.CONTENT_SHA256)


def idx_file(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_set(n_train: int = 36, n_test: int = 5) -> dict[str, bytes]:
    """The four files of a set of random digits, uncompressed."""
    random = np.random.default_rng(0)
    files = {}
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        files[f"{prefix}-images-idx3-ubyte"] = idx_file(random.integers(0, 256, (n, 28, 28), np.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx_file((np.arange(n) % 10).astype(np.uint8))
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class TestEmbedded:
    def test_sizes_and_digits(self) -> None:
        data = load_digits_data()
        assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [7000, 1000, 2000]
        assert data.train.images.shape == (7000, 28, 28)
        assert set(data.test.labels.tolist()) == set(range(10))

    def test_fingerprints_are_of_the_bytes(self) -> None:
        data = load_digits_data("embedded")
        found = data.info()
        expected = hashlib.sha256(data.test.images.tobytes() + data.test.labels.tobytes()).hexdigest()
        assert found.others == {"name": "embedded"}
        assert found.test == SplitSize(n=2000, sha256=expected)
        assert len({split.sha256 for split in found.splits.values()}) == 3

    def test_a_view_has_the_fingerprint_of_its_copy(self) -> None:
        data = load_digits_data().test
        view = Split(data.images[::2], data.labels[::2])
        assert view.size() == Split(view.images.copy(), view.labels.copy()).size()


class TestFolder:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_plain_and_gzipped(self, tmp_path: Path, suffix: str) -> None:
        files = small_set()
        pack: Callable[[bytes], bytes] = gzip.compress if suffix else bytes
        write(tmp_path, {name + suffix: pack(content) for name, content in files.items()})
        data = load_digits_data(tmp_path)
        assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [33, 3, 5]
        assert data.test.images.tobytes() == files["t10k-images-idx3-ubyte"][16:]
        assert data.name == str(tmp_path)

    def test_the_split_holds_every_image_once_and_is_fixed(self, tmp_path: Path) -> None:
        files = small_set()
        data, again = load_digits_data(write(tmp_path, files)), load_digits_data(str(tmp_path))
        both = np.concatenate([data.train.images, data.validation.images]).reshape(36, -1)
        given = np.frombuffer(files["train-images-idx3-ubyte"][16:], np.uint8).reshape(36, -1)
        assert sorted(map(bytes, both)) == sorted(map(bytes, given))
        assert not np.array_equal(both, given), "the split is at random"
        assert data.info() == again.info()
        labels = {bytes(image): label for image, label in zip(given, np.arange(36) % 10, strict=True)}
        assert all(labels[bytes(i)] == y for i, y in zip(data.train.images, data.train.labels, strict=True))

    def test_missing_folder_suggests_a_word(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r'No folder ".*nowhere"; data is "embedded", "mnist" or a folder'):
            load_digits_data(tmp_path / "nowhere")
        with pytest.raises(DataError, match='Did you mean "mnist"'):
            load_digits_data("mnits")

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"t10k-labels-idx1-ubyte": None}, 'neither "t10k-labels-idx1-ubyte" nor "t10k-labels-idx1-ubyte.gz"'),
            ({"train-labels-idx1-ubyte": np.zeros(35, np.uint8)}, "36 train images but 35 labels"),
            ({"train-labels-idx1-ubyte": np.full(36, 10, np.uint8)}, "a label is 10; labels are 0 to 9"),
            ({"t10k-images-idx3-ubyte": np.zeros((5, 32, 30), np.uint8)}, "images are 32 x 30; the model takes 28 x"),
            ({"t10k-images-idx3-ubyte": np.zeros(5, np.uint8)}, "has 1 dimensions; 3 needed"),
            (
                {
                    "t10k-images-idx3-ubyte": np.zeros((0, 28, 28), np.uint8),
                    "t10k-labels-idx1-ubyte": np.zeros(0, np.uint8),
                },
                "holds no images",
            ),
        ],
    )
    def test_unusable_folders(self, tmp_path: Path, changed: dict[str, np.ndarray | None], message: str) -> None:
        files: dict[str, bytes] = small_set()
        for name, array in changed.items():
            del files[name]
            if array is not None:
                files[name] = idx_file(array)
        write(tmp_path, files)
        with pytest.raises(DataError, match=message):
            load_digits_data(tmp_path)

    def test_too_few_images_to_split(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="11 training images; 12 are the least"):
            load_digits_data(write(tmp_path, small_set(n_train=11)))


@dataclass
class Mirror:
    """A server of files, and what it was asked for."""

    url: str
    files: dict[str, bytes]
    break_after: int | None = None
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Mirror]:
    """Serve files; `break_after` makes every answer end after that many bytes, as a lost connection does."""
    mirror = Mirror("", files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.strip("/"), self.headers.get("Range")
            mirror.asked.append((name, wanted))
            content = mirror.files.get(name)
            if content is None:
                return self.send_error(404)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and mirror.ranges else 0
            if start >= len(content) and start:
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: mirror.break_after])
            return None

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield mirror
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A small set as a mirror holds it, its checksums in place of MNIST's."""
    files = small_set()
    monkeypatch.setattr(mnist, "CONTENT_SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in files.items()})
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


@pytest.fixture
def mirror(packed: dict[str, bytes]) -> Iterator[Mirror]:
    with serving(packed) as server:
        yield server


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


FIRST = f"{NAMES[0]}.gz"


class TestDownload:
    def test_the_whole_way_once(self, mirror: Mirror, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANKWISE_MNIST_URL", mirror.url + "/")
        seen: list[tuple[str, int, int | None]] = []
        data = load_digits_data("mnist", progress=lambda *step: seen.append(step))
        assert (data.name, len(data.train.labels)) == ("mnist", 33)
        assert seen[0] == (FIRST, len(mirror.files[FIRST]), len(mirror.files[FIRST]))
        assert sorted(file.name for file in (own_cache / "mnist").iterdir()) == sorted(mirror.files)
        load_digits_data("mnist")
        assert len(mirror.asked) == 4, "the second time nothing is asked for"

    def test_an_interrupted_file_goes_on_where_it_broke(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.break_after = 5000
        fetch_mnist(tmp_path, [mirror.url])
        wanted = [range_ for name, range_ in mirror.asked if name == FIRST]
        assert wanted[:3] == [None, "bytes=5000-", "bytes=10000-"]
        assert (tmp_path / FIRST).read_bytes() == mirror.files[FIRST]

    def test_a_later_call_goes_on(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.break_after = 0
        (tmp_path / f"{FIRST}.part").write_bytes(mirror.files[FIRST][:100])
        with pytest.raises(DataError, match=r"broke off after 100 of [\d,]+ bytes"):
            fetch_mnist(tmp_path, [mirror.url])
        assert (tmp_path / f"{FIRST}.part").stat().st_size == 100, "what had arrived is kept"
        mirror.break_after = None
        fetch_mnist(tmp_path, [mirror.url])
        assert (FIRST, "bytes=100-") in mirror.asked
        assert not list(tmp_path.glob("*.part"))

    def test_a_complete_part_is_only_checked(self, mirror: Mirror, tmp_path: Path) -> None:
        (tmp_path / f"{FIRST}.part").write_bytes(mirror.files[FIRST])
        fetch_mnist(tmp_path, [mirror.url])
        assert [range_ for name, range_ in mirror.asked if name == FIRST] == [f"bytes={len(mirror.files[FIRST])}-"]

    def test_a_server_without_ranges_sends_all_again(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.ranges = False
        (tmp_path / f"{FIRST}.part").write_bytes(b"x" * 100)
        fetch_mnist(tmp_path, [mirror.url])
        assert (tmp_path / FIRST).read_bytes() == mirror.files[FIRST]

    def test_a_part_of_another_file_is_fetched_anew(self, mirror: Mirror, tmp_path: Path) -> None:
        (tmp_path / f"{FIRST}.part").write_bytes(b"x" * 100)
        fetch_mnist(tmp_path, [mirror.url])
        assert [range_ for name, range_ in mirror.asked if name == FIRST] == ["bytes=100-", None]
        assert (tmp_path / FIRST).read_bytes() == mirror.files[FIRST]

    def test_other_compression_of_the_same_content_is_right(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.files[FIRST] = gzip.compress(gzip.decompress(mirror.files[FIRST]), compresslevel=1)
        fetch_mnist(tmp_path, [mirror.url])
        assert (tmp_path / FIRST).read_bytes() == mirror.files[FIRST]

    def test_a_wrong_checksum_leaves_nothing_behind(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.files[FIRST] = gzip.compress(b"another file")
        with pytest.raises(DataError, match=r"its content has the checksum [0-9a-f]{12}\.\.\., not"):
            fetch_mnist(tmp_path, [mirror.url])
        assert not list(tmp_path.iterdir())

    def test_the_next_mirror_is_tried(self, packed: dict[str, bytes], mirror: Mirror, tmp_path: Path) -> None:
        with serving({FIRST: b"no gzip"}) as wrong:
            fetch_mnist(tmp_path, [wrong.url, mirror.url])
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted(packed)

    def test_not_found(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.files.clear()
        with pytest.raises(DataError, match=r"the server answers 404 Not Found.*by hand.*--data FOLDER"):
            fetch_mnist(tmp_path, [mirror.url])

    def test_no_server(self, packed: dict[str, bytes], tmp_path: Path) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(
                DataError, match=r"no connection .*fetch train-images-idx3-ubyte\.gz, .*by hand"
            ) as caught:
                fetch_mnist(tmp_path, [url])
        assert "\n" not in str(caught.value)

    def test_only_http(self, packed: dict[str, bytes], tmp_path: Path) -> None:
        with pytest.raises(DataError, match="must begin with http:// or https://"):
            fetch_mnist(tmp_path, ["file:///etc"])

    def test_a_folder_that_can_not_be_made(self, mirror: Mirror, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(DataError, match="can't be written"):
            fetch_mnist(tmp_path / "taken", [mirror.url])


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("RANKWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "rankwise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "rankwise"
