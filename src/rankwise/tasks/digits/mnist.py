"""The digits as raw pixels: embedded, the whole of MNIST (downloaded once), or IDX files in a folder."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.errors import DataError, suggest
from rankwise.results.origin import DataInfo, SplitSize
from rankwise.streams import stream
from rankwise.tasks.digits.download import DownloadProgress, download
from rankwise.tasks.digits.idx import read_content, read_idx

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
"""Public mirrors of the four files, tried in turn; the variable RANKWISE_MNIST_URL takes their place."""

CONTENT_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the files' uncompressed content. Not of the .gz files: mirrors compress the same content differently."""

VALIDATION_SHARE = 12
"""One in twelve training images goes to validation: 5,000 of MNIST's 60,000."""

EMBEDDED_SPLITS = {"train": slice(0, 7000), "validation": slice(7000, 8000), "test": slice(8000, 10000)}


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Args:
        images: (N, 28, 28), 0 black to 255 white.
        labels: (N,), 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def size(self) -> SplitSize:
        """Return how many images there are, and the SHA-256 of the images' bytes and then the labels'.

        Examples:
            >>> Split(np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8)).size().n
            1
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return SplitSize(n=len(self.labels), sha256=digest.hexdigest())


@dataclass(frozen=True)
class RawDigits:
    """All ten digits of a data set, split; which digits are used is decided elsewhere.

    Args:
        name: "embedded", "mnist", or the folder.
        train: For training.
        validation: For every choice: learning rate, stopping, the answer.
        test: Read once, at the end.
    """

    name: str
    train: Split
    validation: Split
    test: Split

    def info(self) -> DataInfo:
        """Return the data set's name, and size and checksum of each split."""
        train, validation, test = (split.size() for split in (self.train, self.validation, self.test))
        return DataInfo(others={"name": self.name}, train=train, validation=validation, test=test)


def load_digits_data(where: str | Path = "embedded", progress: DownloadProgress | None = None) -> RawDigits:
    """Load a set of digits.

    Args:
        where: "embedded" (10,000 images that come with the package: 7,000 / 1,000 / 2,000), "mnist" (55,000 /
            5,000 / 10,000; downloaded once into `cache_directory()`), or a folder of IDX files, plain or
            gzipped, under MNIST's names, which Fashion-MNIST and others share. A `Path` is always a folder.
        progress: Told how far a download is.

    Raises:
        DataError: Data is missing or damaged, or could not be fetched.

    Examples:
        >>> load_digits_data("embedded").train.images.shape
        (7000, 28, 28)
    """
    if where == "embedded":
        return _embedded()
    if where == "mnist":
        return _from_folder(fetch_mnist(progress=progress), "mnist")
    folder = Path(where)
    if not folder.is_dir():
        near = suggest(where, ["embedded", "mnist"]) if isinstance(where, str) else ""
        raise DataError(f'No folder "{folder}"; data is "embedded", "mnist" or a folder of IDX files.{near}')
    return _from_folder(folder, str(folder))


def cache_directory() -> Path:
    """Return where downloads are kept: $RANKWISE_CACHE, else $XDG_CACHE_HOME/rankwise, else ~/.cache/rankwise."""
    if chosen := os.environ.get("RANKWISE_CACHE"):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "rankwise"


def fetch_mnist(
    folder: Path | None = None, mirrors: Sequence[str] | None = None, progress: DownloadProgress | None = None
) -> Path:
    """Download the four files of MNIST (12 MB) unless they are there; an interrupted download is resumed.

    Args:
        folder: Where to; `cache_directory() / "mnist"` if None.
        mirrors: Base addresses; $RANKWISE_MNIST_URL, else `MIRRORS`, if None.
        progress: Told how far it is.

    Returns:
        The folder with the files.

    Raises:
        DataError: A file could not be fetched; says how to fetch them by hand.
    """
    folder = cache_directory() / "mnist" if folder is None else folder
    if mirrors is None:
        own = os.environ.get("RANKWISE_MNIST_URL")
        mirrors = [own] if own else MIRRORS
    for name in CONTENT_SHA256:
        try:
            download(mirrors, folder / f"{name}.gz", _check_content, progress)
        except DataError as error:
            raise DataError(
                f"MNIST: {error} Without a network, fetch {', '.join(f'{file}.gz' for file in CONTENT_SHA256)} "
                "by hand into a folder and give --data FOLDER."
            ) from error
    return folder


def _check_content(part: Path) -> None:
    """Raise ValueError unless the (partial name's) file holds the known content."""
    name = part.name.removesuffix(".part").removesuffix(".gz")
    found = hashlib.sha256(read_content(part)).hexdigest()
    if found != CONTENT_SHA256[name]:
        raise ValueError(f"its content has the checksum {found[:12]}..., not {CONTENT_SHA256[name][:12]}...")


def _embedded() -> RawDigits:
    with resources.files("rankwise.tasks.digits").joinpath("mnist10k.npz").open("rb") as file:
        data = np.load(file, allow_pickle=False)
        images, labels = data["images"], data["labels"]
    return RawDigits("embedded", **{name: Split(images[part], labels[part]) for name, part in EMBEDDED_SPLITS.items()})


def _from_folder(folder: Path, name: str) -> RawDigits:
    given, test = _read_split(folder, "train"), _read_split(folder, "t10k")
    n = len(given.labels)
    if n < VALIDATION_SHARE:
        raise DataError(
            f"{folder} has {n} training images; {VALIDATION_SHARE} are the least, as 1 in "
            f"{VALIDATION_SHARE} goes to validation."
        )
    # One fixed stream: the split belongs to the data and is the same for every seed.
    order = torch.randperm(n, generator=stream("digits", "validation split")).numpy()
    first, last = np.split(order, [n - n // VALIDATION_SHARE])
    return RawDigits(
        name,
        train=Split(given.images[first], given.labels[first]),
        validation=Split(given.images[last], given.labels[last]),
        test=test,
    )


def _read_split(folder: Path, prefix: str) -> Split:
    image_file, label_file = (_find(folder, f"{prefix}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{image_file}: images are {images.shape[1]} x {images.shape[2]}; the model takes 28 x 28.")
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images):,} {prefix} images but {len(labels):,} labels; one label an image.")
    if len(labels) == 0:
        raise DataError(f"{image_file} holds no images.")
    if labels.max() > 9:
        raise DataError(f"{label_file}: a label is {labels.max()}; labels are 0 to 9.")
    return Split(images, labels)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f'{folder} has neither "{name}" nor "{name}.gz"; the four IDX files of MNIST\'s names are needed.')
