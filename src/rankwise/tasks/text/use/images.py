"""Saved adapters that classify images, in use: predictions, figures, and merged into their base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.adapter_files import load_adapter
from rankwise.errors import ConfigError, DataError, OutputError
from rankwise.locking import staging
from rankwise.lora.inject import eject
from rankwise.lora.merge import merge
from rankwise.tasks.images.model import AUTO_CLASS, ImageModel, load_image_model
from rankwise.tasks.images.pixels import Pixels
from rankwise.tasks.images.reading import ENDINGS, LabelledImage, read_images
from rankwise.tasks.settings import shared
from rankwise.tasks.text.card.model_card import render
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.seen import seen_notes
from rankwise.tasks.text.data.subset import drawn
from rankwise.tasks.text.model.silence import silence_transformers
from rankwise.tasks.text.model.source import ModelOptions
from rankwise.tasks.text.use.evaluating.classifiers import classifier_evaluation, no_head_note
from rankwise.tasks.text.use.evaluating.result import SEED, Evaluation
from rankwise.tasks.text.use.merging import Merged, check_merge
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.predicting import predictions_of
from rankwise.tasks.text.use.prediction import Prediction
from rankwise.tasks.text.use.served import BASE_NAME, acting_alone, labels_of, model_of, name_inside, served_names
from rankwise.train.machine.device import device_note, find_device
from rankwise.writing import plain_mode

IMAGES_AT_ONCE = 32
"""Images that pass the model at once."""


@dataclass(frozen=True)
class ServedImages:
    """A classifier of images with saved adapters on it, one acting at a time.

    Args:
        loaded: The model.
        names: What the adapters are called, in order.
        folders: Where they lie, in order.
        notes: Notes for the user.
    """

    loaded: ImageModel
    names: tuple[str, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]

    @torch.no_grad()
    def outputs(self, name: str, files: Sequence[str]) -> Float[Tensor, "files C"]:
        """The logits of one adapter, or of the base (`BASE_NAME`), in float32 on the CPU.

        Raises:
            DataError: An image can't be decoded.
        """
        model = self.loaded.model
        device = next(model.parameters()).device
        pixels = Pixels(files, self.loaded.processor, self.loaded.mode)
        with acting_alone(model, self.names, name):
            parts = [
                self.loaded.call(model, {"pixel_values": pixels.of(rows).to(device)}).float().cpu()
                for rows in torch.arange(len(files)).split(IMAGES_AT_ONCE)
            ]
        return torch.cat(parts)


def load_adapted_images(folders: Sequence[Path], options: UseOptions) -> ServedImages:
    """Load a classifier of images and put saved adapters on it.

    Raises:
        ConfigError: The base is not known, or can't be loaded.
        AdapterFileError: An adapter is missing, damaged or doesn't fit the base.
        DataError: Adapters have different labels.
    """
    device = find_device(options.device)
    model, labels = model_of(folders, options.model), labels_of(folders)
    # A classifier of images reads its pixels in one way.
    model_options = ModelOptions(**shared(options, ModelOptions, device=str(device), pooling="auto"))
    loaded = load_image_model(model, labels, model_options, fixed_order=True)
    for i, folder in enumerate(folders):
        load_adapter(loaded.model, folder, name_inside(i))
    loaded.model.eval()
    notes = (*device_note(options.device, device), *loaded.notes)
    return ServedImages(loaded, served_names(folders), tuple(folders), notes)


def listed_images(place: Path) -> list[LabelledImage]:
    """An image file, or the image files of a folder, without labels.

    Raises:
        DataError: There is none.
    """
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in ENDINGS) if place.is_dir() else [place]
    if not files or not place.exists():
        raise DataError(f"{place} holds no image; give an image, or a folder of images.")
    return [LabelledImage(i, str(file), "") for i, file in enumerate(files, start=1)]


def predict_images(served: ServedImages, images: Sequence[Labelled]) -> dict[str, list[Prediction]]:
    """Label images with every adapter: adapter -> its predictions, in the order of the images.

    Raises:
        DataError: An image can't be decoded.
    """
    files = [image.text for image in images]
    return {name: predictions_of(served.outputs(name, files), served.loaded.labels) for name in served.names}


def evaluate_images(
    served: ServedImages,
    data: str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    generate: int = 0,
) -> Evaluation:
    """Figures of the base and of each adapter on labelled images, and of the best constant answer.

    Args:
        served: Model and adapters.
        data: A folder with a folder for each label, or a file with paths and labels.
        columns: Role -> column, where a column is not called as its role.
        skip_bad: Leave out images that can't be read, and say so.
        limit: How many images are used at most; None for all.
        generate: Must be 0: nothing is written.

    Raises:
        ConfigError: Answers are asked of a classifier.
        DataError: The images can't be read, or their labels are unknown.
    """
    if generate:
        raise ConfigError("--generate writes answers, and the adapter classifies images; leave it out.")
    images, notes = read_images(data, columns or {}, skip_bad=skip_bad)
    if limit is not None and limit < len(images):
        notes.append(f"{limit:,} of {len(images):,} images are used, drawn with seed {SEED}.")
        images = [images[i] for i in drawn(images, limit, SEED, "test")]
    labels, files = served.loaded.labels, [image.text for image in images]
    right = labels.encode(images, "test")
    names = [*([] if served.loaded.new_head else [BASE_NAME]), *served.names]
    outputs = {name: served.outputs(name, files) for name in names}
    found = classifier_evaluation(data, images, labels, right, outputs)
    seen = seen_notes(served.names, served.folders, images, data)
    return replace(
        found, notes=[*served.notes, *notes, *seen, *([] if BASE_NAME in names else [no_head_note(served.folders)])]
    )


def merge_images(served: ServedImages, folder: Path) -> Merged:
    """Merge the one adapter, and write model, image processor and labels. The model is merged for good.

    Args:
        served: A classifier of images with one adapter.
        folder: Where; it must not be there, or be empty.

    Raises:
        AdapterError: The adapter can't be merged.
        ConfigError: There is not one adapter.
        OutputError: The folder holds something, or can't be written.
    """
    check_merge(served.names, folder)
    model: Any = served.loaded.model
    base, labels = model.config.name_or_path, served.loaded.labels
    report = merge(model, keep_base=False, dequantize=True)
    eject(model)
    card = render(
        "merged.md.jinja",
        name=folder.name,
        base=base,
        labels=labels,
        images=True,
        pooled=False,
        auto_class=AUTO_CLASS,
        class_name=type(model).__name__,
    )
    try:
        with staging(folder) as temporary:
            with silence_transformers():
                model.save_pretrained(temporary)
                served.loaded.processor.save_pretrained(temporary)
            labels.save(temporary)
            for path in temporary.glob("*.safetensors"):
                plain_mode(path)
            (temporary / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} can't be written ({error.strerror or error}); give --out another one.") from error
    how = f'Load it with pipeline("image-classification", "{folder}"): a {type(model).__name__}, labels included.'
    return Merged(folder, report, (*served.notes, how))
