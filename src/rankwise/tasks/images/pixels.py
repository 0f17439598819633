"""Images read when a batch needs them: a data set holds their numbers, and memory has a bound whatever its size."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.errors import DataError

ROWS, CHECKSUMS, PIXELS, LABELS = "rows", "checksums", "pixel_values", "labels"
"""Parts of a data set and of a batch: numbers of images, checksums of their files, pixels, labels."""

THREADS = min(8, os.cpu_count() or 1)
"""Images that are decoded at once; decoding and resizing release Python's lock."""

DECODED_BYTES = 256 * 2**20
"""Of pixels that stay in memory: the first images read, so that a small data set is decoded once and not in every epoch
of every run. Of a larger one a fixed part stays; taking the latest would hold none until it is read again."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Turns numbers of images into their pixels; `Feed.prepare` of images.

    Args:
        files: The image files.
        processor: transformers' image processor, which resizes and normalises.
        mode: Of the images that the model takes, in PIL's words: "RGB", or "L" for one channel.
    """

    files: Sequence[str]
    processor: Any
    mode: str = "RGB"
    decoded: dict[int, Tensor] = field(default_factory=dict[int, Tensor], init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pixels, (self.files, self.processor, self.mode)

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the pixels of its images, (*rows, C, H, W), in place of their numbers and checksums.

        Raises:
            DataError: An image can't be decoded.
        """
        rows = batch[ROWS]
        # Seeds that share a batch read each image once.
        numbers, places = rows.flatten().cpu().unique(return_inverse=True)
        pixels = self.of(numbers)[places].unflatten(0, rows.shape).to(rows.device)
        rest = {key: value for key, value in batch.items() if key not in (ROWS, CHECKSUMS)}
        return {PIXELS: pixels, **rest}

    def of(self, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n C H W"]:
        """The pixels of some images, in this order.

        Raises:
            DataError: An image can't be decoded, or images come out in different sizes.
        """
        wanted: list[int] = numbers.tolist()
        missing = [i for i in dict.fromkeys(wanted) if i not in self.decoded]
        with ThreadPoolExecutor(THREADS) as threads:
            read = dict(zip(missing, threads.map(self._one, [self.files[i] for i in missing]), strict=True))
        images = [self.decoded[i] if i in self.decoded else read[i] for i in wanted]
        if len(shapes := {tuple(image.shape) for image in images}) > 1:
            raise DataError(
                f"The model's image processor makes images of different sizes ({sorted(shapes)[0]} and "
                f"{sorted(shapes)[-1]}), which can't share a batch; take a model whose processor makes one size."
            )
        for i, image in read.items():
            if (len(self.decoded) + 1) * image.nbytes > DECODED_BYTES:
                break
            self.decoded[i] = image
        return torch.stack(images)

    def _one(self, file: str) -> Tensor:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened).convert(self.mode)
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises the last for a damaged PNG file
            raise DataError(
                f"{file} can't be decoded ({' '.join(str(error).split())}); mend it, or leave it out."
            ) from error
        return self.processor(images=image, return_tensors="pt")[PIXELS][0]
