"""Pixels are read when they are needed, and are those of the model's processor."""

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from image_models import make_images
from rankwise.errors import DataError
from rankwise.tasks.images.pixels import Pixels


@pytest.fixture
def files(tmp_path):
    return sorted(map(str, make_images(tmp_path, 2, 2).rglob("*.png")))


def test_a_batch_has_the_pixels_of_the_processor(files):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    rows = torch.tensor([[3, 0], [0, 2]])
    batch = Pixels(files, processor)({"rows": rows, "checksums": rows, "labels": rows})
    expected = processor(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt")[
        "pixel_values"
    ]
    assert batch.keys() == {"pixel_values", "labels"}
    assert torch.equal(batch["pixel_values"], expected[rows])


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    processor = ViTImageProcessorPil(do_resize=False, do_normalize=False)
    pixels = Pixels([str(tmp_path / "a.png")], processor).of(torch.tensor([0]))
    assert pixels[0, 0].tolist() == [[0.0, 1.0]]


def test_a_damaged_image_is_named(files):
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:60])
    with pytest.raises(DataError, match=r"png can't be decoded"):
        Pixels(files, ViTImageProcessorPil()).of(torch.tensor([0, 1]))


def test_images_of_different_sizes_are_refused(files):
    Image.new("RGB", (5, 4)).save(files[0])
    with pytest.raises(DataError, match=r"images of different sizes \(\(3, 4, 5\) and \(3, 28, 28\)\)"):
        Pixels(files, ViTImageProcessorPil(do_resize=False)).of(torch.tensor([0, 1]))


def test_a_small_data_set_is_decoded_once_and_of_a_larger_one_a_part_stays(files, monkeypatch):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    read = []
    one = Pixels._one
    monkeypatch.setattr(Pixels, "_one", lambda self, file: read.append(file) or one(self, file))
    rows = torch.tensor([0, 1, 1, 3])
    pixels = Pixels(files, processor)
    first = pixels.of(rows)
    assert torch.equal(pixels.of(rows), first)
    assert sorted(read) == [files[0], files[1], files[3]]
    assert not pickle.loads(pickle.dumps(pixels)).decoded, "another process reads its own"
    read.clear()
    monkeypatch.setattr("rankwise.tasks.images.pixels.DECODED_BYTES", 2 * first[0].nbytes)
    bounded = Pixels(files, processor)
    assert torch.equal(bounded.of(rows), first)
    assert torch.equal(bounded.of(rows), first)
    assert len(bounded.decoded) == 2
    assert len(read) == 3 + 1
