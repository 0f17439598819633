"""IDX files, the format MNIST came in: big-endian sizes, then the numbers. Plain or gzipped.

References:
    LeCun, Cortes & Burges, The MNIST database, "File formats". http://yann.lecun.com/exdb/mnist/
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError

UBYTE = 0x08
"""The format's code for unsigned bytes, the only type the digit sets use."""


def read_idx(path: str | Path, dimensions: int | None = None) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes; its content, not its name, decides whether it is gzipped.

    Args:
        path: The file.
        dimensions: How many dimensions the array must have (images 3, labels 1); None takes any number.

    Returns:
        The array, shaped as the file says.

    Raises:
        DataError: The file is missing, damaged, not IDX, of another shape, too short or too long.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "labels-idx1-ubyte")
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        ...     read_idx(file, dimensions=1)
        array([7, 9], dtype=uint8)
    """
    path = Path(path)
    try:
        return parse_idx(read_content(path), dimensions)
    except ValueError as error:
        raise DataError(f"{path}: {error} Fetch the file again.") from error


def read_content(path: Path) -> bytes:
    """Return a file's bytes, decompressed where it is gzipped.

    Raises:
        ValueError: The file can't be read, or its compressed data is damaged or cut off.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file can't be read ({error.strerror}).") from error
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"the gzip data is damaged or cut off ({error}).") from error


def parse_idx(content: bytes, dimensions: int | None = None) -> NDArray[np.uint8]:
    """Read the content of an IDX file of unsigned bytes.

    Args:
        content: Two zero bytes, the type's code, the number of dimensions, each size as a big-endian
            32-bit number, then the values row by row.
        dimensions: How many dimensions the array must have; None takes any number.

    Raises:
        ValueError: The content is not that; the message is a short fact without the file's name.

    Examples:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
        array([7, 9], dtype=uint8)
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, UBYTE]):
        raise ValueError(
            f"the file begins with 0x{content[:4].hex()}; an IDX file of unsigned bytes begins with 0x000008."
        )
    found = content[3]
    if found == 0 or dimensions not in (None, found):
        raise ValueError(f"the array has {found} dimensions; {dimensions or 'at least 1'} needed.")
    start = 4 + 4 * found
    if len(content) < start:
        raise ValueError(f"the file ends inside its header, after {len(content)} of {start} bytes.")
    shape = struct.unpack(f">{found}I", content[4:start])
    expected, given = start + math.prod(shape), len(content)
    if given != expected:
        what = "is cut off" if given < expected else "has bytes after its end"
        raise ValueError(f"the file {what}: shape {shape} needs {expected:,} bytes, there are {given:,}.")
    # A copy, because an array over `bytes` can't be written to and torch warns about such arrays.
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
