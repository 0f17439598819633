"""The task `images`: images with labels. Each adapter has its own head, saved with it."""

from functools import partial

import torch
from torch import Tensor

from rankwise.lora.targets.find import ALL_LINEAR
from rankwise.sweeps.problem import Splits
from rankwise.tasks.images.model import conv_targets, load_image_model
from rankwise.tasks.images.pixels import CHECKSUMS, LABELS, ROWS, Pixels
from rankwise.tasks.images.reading import LabelledImage, check_labels, image_folders, read_images
from rankwise.tasks.text.data.labels import find_labels
from rankwise.tasks.text.data.splits import ExampleSplits, split_examples
from rankwise.tasks.text.options import TextOptions
from rankwise.tasks.text.score.floors import constant_rows
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.score.metrics import metric_of
from rankwise.tasks.text.train.built_task import SPLITS, BuiltTask, model_options, trained_inputs
from rankwise.tasks.text.train.pooling import pooled_splits
from rankwise.train.data.feed import Feed

IMAGES_AT_ONCE = 1024
"""Images, over all adapters, that an evaluation passes at once; fewer where they would take too much memory."""

KIND = "one"
"""The kind of label."""


def ready_images(options: TextOptions) -> BuiltTask:
    """Load the model with a head for the labels, and list the images.

    Raises:
        ConfigError: There is no such model.
        DataError: Images can't be read, or their labels don't fit.
    """
    examples, images, given, notes = _read_splits(options)
    labels = find_labels(images["train"], KIND)
    loaded = load_image_model(options.model, labels, model_options(options))
    labels = loaded.labels
    files: list[str] = []
    data: dict[str, dict[str, Tensor]] = {}
    for what, part in images.items():
        data[what] = {
            ROWS: torch.arange(len(files), len(files) + len(part), device=options.base.device),
            # By these a resumed run knows its data again.
            CHECKSUMS: torch.tensor([int(image.checksum[:15], 16) for image in part], device=options.base.device),
            LABELS: labels.encode(part, SPLITS[what]).to(options.base.device),
        }
        files += [image.text for image in part]
    splits = Splits(data["train"], data["validation"], data["test"])
    if not given:
        splits = pooled_splits(**data, inputs=[image.source for image in (*images["train"], *images["validation"])])
    targets = conv_targets(loaded.model, loaded.head)
    if targets is not None and options.adapters.target_modules == ((ALL_LINEAR,),):
        notes.append(f"The model has no linear layers but its head; its {len(targets)} convolutions are adapted.")
    metric = metric_of(KIND, options.form.metric)
    return BuiltTask(
        loaded=loaded,
        splits=splits,
        inputs=trained_inputs(examples, splits),
        feed=Feed(
            call=loaded.call,
            prepare=Pixels(files, loaded.processor, loaded.mode),
            rows_at_once=IMAGES_AT_ONCE,
        ),
        loss=CLASSIFY_LOSSES[KIND],
        metric=metric.function,
        metric_name=metric.name,
        higher_is_better=metric.higher_is_better,
        task_type=None,
        notes=[*notes, *examples.notes, *loaded.notes],
        beside=labels.save,
        constant=partial(constant_rows, labels, metric.function),
        loss_name=metric_of(KIND, "loss").name,
        loss_constant=partial(constant_rows, labels, CLASSIFY_LOSSES[KIND]),
        check_start=labels.check_same,
        targets=targets,
        reads="images",
    )


def _read_splits(options: TextOptions) -> tuple[ExampleSplits, dict[str, list[LabelledImage]], bool, list[str]]:
    """The examples in splits, the images of each, whether validation images were given, and notes."""
    where, notes = options.examples, list[str]()
    given: dict[str, list[LabelledImage] | None] = {}
    for split, place in image_folders(options.data, where.validation, where.test).items():
        given[split] = None
        if place is not None:
            given[split], warnings = read_images(place, dict(where.columns), skip_bad=where.skip_bad_lines)
            notes += warnings
    check_labels({what: images for what, images in given.items() if images is not None})
    examples = split_examples(
        given["train"] or [],
        given["validation"],
        given["test"],
        validation_share=where.validation_share,
        test_share=where.test_share,
        seed=where.split_seed,
        limits=where.limits(),
    )
    images = {what: [image for image in getattr(examples, what) if isinstance(image, LabelledImage)] for what in SPLITS}
    return examples, images, given["validation"] is not None, notes
