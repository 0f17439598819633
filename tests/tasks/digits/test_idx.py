"""Reading IDX files: what is written comes back, and every kind of damage is one clear line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rankwise.errors import DataError
from rankwise.tasks.digits.idx import parse_idx, read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    """Write an array as the format says."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(arrays.arrays(np.uint8, arrays.array_shapes(max_dims=4, max_side=5)))
def test_what_is_written_comes_back(array: np.ndarray) -> None:
    np.testing.assert_array_equal(parse_idx(idx_bytes(array)), array)


@given(st.binary(max_size=40))
def test_any_bytes_give_an_array_or_a_value_error(content: bytes) -> None:
    try:
        array = parse_idx(content)
    except ValueError:
        return
    assert idx_bytes(array) == content


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_gzip_is_told_from_the_content(tmp_path: Path, pack) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "images"
    path.write_bytes(pack(idx_bytes(array)))
    read = read_idx(path, dimensions=3)
    np.testing.assert_array_equal(read, array)
    assert read.flags.writeable


LABELS = idx_bytes(np.array([3, 1, 4], np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LABELS[:-1], r"cut off: shape \(3,\) needs 11 bytes, there are 10"),
        (LABELS + b"x", r"bytes after its end: shape \(3,\) needs 11 bytes, there are 12"),
        (LABELS[:6], "inside its header, after 6 of 8 bytes"),
        (b"", "begins with 0x;"),
        (b"PK\x03\x04rest", "begins with 0x504b0304"),
        (bytes([0, 0, 13, 1]) + LABELS[4:], "unsigned bytes begins with 0x000008"),
        (bytes([0, 0, 8, 0]), "has 0 dimensions"),
        (idx_bytes(np.zeros((2, 2), np.uint8)), "has 2 dimensions; 1 needed"),
        (bytes([0, 0, 8, 1]) + b"\xff" * 4, "needs 4,294,967,303 bytes"),
        (gzip.compress(LABELS, mtime=0)[:-3], "gzip data is damaged or cut off"),
        (gzip.compress(LABELS, mtime=0)[:10] + b"\xff" * 20, "gzip data is damaged or cut off"),
        (gzip.compress(LABELS, mtime=0) + b"trailing", "gzip data is damaged or cut off"),
        (gzip.compress(LABELS[:-1], mtime=0), "is cut off"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dimensions=1)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: the file can't be read \(No such file"):
        read_idx(tmp_path / "nowhere")
