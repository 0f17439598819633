"""Labelled images: a folder with a folder for each label, or a file with a path and a label on each line."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise.errors import DataError, suggest
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.read.bad_lines import NAMED
from rankwise.tasks.text.read.sources import Records, read_records

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files in a folder that are images."""

SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""Split -> the names that its folder has in a data set whose splits are folders."""

HASHED = 1 << 16
"""Bytes at the beginning and the end of a file that its checksum is taken of, with its length."""


@dataclass(frozen=True)
class LabelledImage(Labelled):
    """An image file (its path is `text`) with its label.

    Args:
        checksum: Of the file's content; two files with the same one are the same image.
    """

    checksum: str = ""

    @property
    def source(self) -> tuple[str, str | None]:
        """The image itself, whatever its file name."""
        return self.checksum, None


def image_folders(data: str, validation: str | None, test: str | None) -> dict[str, str | None]:
    """Where the images of each split are; a folder may have a folder for each split.

    Args:
        data: Training images.
        validation: Validation images, where they are given.
        test: Test images, where they are given.

    Examples:
        >>> image_folders("photos", None, "photos-test")
        {'train': 'photos', 'validation': None, 'test': 'photos-test'}
    """
    given = {"train": data, "validation": validation, "test": test}
    root = Path(data)
    inside = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    train = inside["train"]
    if train is None or not (inside["validation"] or inside["test"]) or not any(p.is_dir() for p in train.iterdir()):
        return given
    found = {split: str(folder) for split, folder in inside.items() if folder is not None}
    return {split: found.get(split) if split == "train" or place is None else place for split, place in given.items()}


def read_images(
    place: str, columns: Mapping[str, str], *, skip_bad: bool = False
) -> tuple[list[LabelledImage], list[str]]:
    """List the images of a split, in an order that depends on their names alone (or on the lines of the file).

    Every file is opened to see that it is an image; none is decoded.

    Args:
        place: A folder with a folder for each label, in which images may lie at any depth; or a .csv, .tsv, .jsonl,
            .json or .parquet file with the columns path and label. Paths in it are relative to its folder.
        columns: "path" or "label" -> the column that holds it, where it is not called so.
        skip_bad: Leave out files that are missing or no images, and say so.

    Returns:
        The images, and notes for the user.

    Raises:
        DataError: There is no such place, it holds no images, or one of them can't be read.
    """
    path = Path(place)
    if not path.exists():
        raise DataError(
            f"There is no folder or file {place}; give a folder with a folder of images for each label, or a .csv file "
            "with the columns path and label."
        )
    if path.is_dir():
        listed, notes = list(_in_folders(path)), list[str]()
    else:
        records = read_records(path, skip_bad_lines=skip_bad)
        listed, notes = list(_in_file(records, path.parent, columns)), list(records.notes)
    images: list[LabelledImage] = []
    wrong: list[str] = []
    for i, (file, label) in enumerate(listed, start=1):
        try:
            images.append(LabelledImage(i, str(file), label, checksum=_checksum_of(file)))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
        what = f"{len(wrong):,} of {len(listed):,} images in {place} can't be read: {'; '.join(wrong[:NAMED])}{more}."
        if not skip_bad:
            raise DataError(f"{what} Mend them, or give --skip-bad-lines to leave them out.")
        notes.append(f"{what} They were left out.")
    if not images:
        raise DataError(f"{place} holds no images that can be read.")
    return images, notes


def _in_folders(root: Path) -> Iterator[tuple[Path, str]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{root} has no folders; it must hold a folder of images for each label.")
    found = 0
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in ENDINGS and file.is_file():
                found += 1
                yield file, folder.name
    if not found:
        raise DataError(f"The folders in {root} hold no images; what is read ends in {', '.join(ENDINGS)}.")


def _in_file(records: Records, root: Path, columns: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    named = {role: columns.get(role, role) for role in ("path", "label")}
    for role, column in named.items():
        if column not in records.columns:
            raise DataError(
                f'{records.source} has no column "{column}" (it has {", ".join(records.columns)}); --columns '
                f"{role}=NAME says which one holds the {role}.{suggest(column, records.columns)}"
            )
    for row in records.rows:
        file, label = (row.values.get(column) for column in named.values())
        if not isinstance(file, str) or not file or label is None or label == "":
            raise DataError(f"Line {row.line} of {records.source} has no {'label' if file else 'path'}.")
        yield root / file, str(label)


def _checksum_of(file: Path) -> str:
    """A checksum of a file that is an image.

    Raises:
        DataError: It is missing, or no image.
    """
    with requires_extra("Images", "images"):
        from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file):
            pass
        with file.open("rb") as opened:
            size = file.stat().st_size
            digest = hashlib.blake2b(f"{size} ".encode() + opened.read(HASHED), digest_size=16)
            if size > HASHED:
                opened.seek(max(HASHED, size - HASHED))
                digest.update(opened.read(HASHED))
    except UnidentifiedImageError as error:
        raise DataError(f"{file} (no image)") from error
    except OSError as error:
        raise DataError(f"{file} ({error.strerror or error})") from error
    return digest.hexdigest()


def check_labels(parts: Mapping[str, Sequence[LabelledImage]]) -> None:
    """Refuse labels that only the validation or test images have.

    Args:
        parts: Split -> its images, "train" among them.

    Raises:
        DataError: There are some.
    """
    known = {image.label for image in parts["train"]}
    for what, images in parts.items():
        if unknown := sorted({str(image.label) for image in images} - {str(label) for label in known}):
            raise DataError(
                f"The {what} images have labels that the training images do not: {', '.join(unknown[:NAMED])}; nothing "
                f"can learn them. Leave these images out, or mend their labels."
                f"{suggest(unknown[0], sorted(map(str, known)))}"
            )
