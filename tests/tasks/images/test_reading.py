"""Which images a folder or a file names, and in which order; what is refused."""

import csv

import pytest

from image_models import make_images
from rankwise.errors import DataError
from rankwise.tasks.images.reading import check_labels, image_folders, read_images


def test_a_folder_has_a_folder_for_each_label(tmp_path):
    images, notes = read_images(str(make_images(tmp_path, 3, 2)), {})
    assert [image.label for image in images] == ["digit 0"] * 3 + ["digit 1"] * 3
    assert notes == []
    assert [image.text for image in images] == sorted(image.text for image in images)
    assert len({image.checksum for image in images}) == 6


def test_a_file_has_paths_and_labels(tmp_path):
    make_images(tmp_path, 2, 2)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png"))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], *((name, i % 2) for i, name in enumerate(files))])
    images, _ = read_images(str(tmp_path / "list.csv"), {"path": "file"})
    assert [(image.text, image.label) for image in images] == [
        (str(tmp_path / name), str(i % 2)) for i, name in enumerate(files)
    ]
    with pytest.raises(DataError, match=r'has no column "path" \(it has file, label\); --columns path=NAME'):
        read_images(str(tmp_path / "list.csv"), {})


def test_the_same_image_has_the_same_checksum_whatever_its_name(tmp_path):
    make_images(tmp_path, 1, 1)
    (file,) = (tmp_path / "digit 0").iterdir()
    (file.parent / "copy.png").write_bytes(file.read_bytes())
    images, _ = read_images(str(tmp_path), {})
    assert images[0].source == images[1].source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"has no folders; it must hold a folder of images for each label"),
        (lambda root: (root / "a").mkdir(), r"hold no images; what is read ends in"),
        (lambda root: root.rmdir(), r"There is no folder or file"),
    ],
)
def test_a_place_without_images_is_refused(tmp_path, make, message):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message):
        read_images(str(root), {})


def test_what_is_no_image_is_named_or_left_out(tmp_path):
    make_images(tmp_path, 2, 1)
    (tmp_path / "digit 0" / "z.png").write_text("no image")
    with pytest.raises(DataError, match=r"1 of 3 images in .* can't be read: .*z.png \(no image\)"):
        read_images(str(tmp_path), {})
    images, notes = read_images(str(tmp_path), {}, skip_bad=True)
    assert len(images) == 2
    assert "left out" in notes[0]


def test_splits_may_be_folders(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    assert image_folders(str(tmp_path), None, "elsewhere") == {
        "train": str(tmp_path / "train"),
        "validation": str(tmp_path / "val"),
        "test": "elsewhere",
    }


def test_labels_that_only_the_test_has_are_refused(tmp_path):
    train, _ = read_images(str(make_images(tmp_path / "a", 1, 2)), {})
    test, _ = read_images(str(make_images(tmp_path / "b", 1, 3)), {})
    with pytest.raises(DataError, match=r"test images have labels that the training images do not: digit 2"):
        check_labels({"train": train, "test": test})
