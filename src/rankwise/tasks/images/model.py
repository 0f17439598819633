"""Classifiers of images by folder or hub name, of transformers and of timm, with their image processors.

Both are loaded by transformers' `AutoModelForImageClassification`, which wraps models of timm, so the names in an
adapter fit what `PeftModel.from_pretrained` and `pipeline` load.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError
from rankwise.lora.layer_types import layer_type_of
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.model.calls import ModelCall, find_inputs
from rankwise.tasks.text.model.heads import initial_head
from rankwise.tasks.text.model.silence import silence_transformers
from rankwise.tasks.text.model.source import ModelOptions, ModelSource
from rankwise.tasks.text.model.trained_heads import match_head

AUTO_CLASS = "AutoModelForImageClassification"


@dataclass(frozen=True)
class ImageModel:
    """A classifier of images.

    Args:
        model: In eval mode. Its modules have transformers' names, for adapter files.
        processor: Its image processor.
        call: (model, batch) -> logits.
        head: Modules that belong to each adapter.
        new_head: Those of them that begin from the adapter's seed.
        labels: What it predicts, in the order of its outputs.
        notes: Notes for the user.
    """

    model: nn.Module
    processor: Any
    call: ModelCall
    head: tuple[str, ...]
    new_head: tuple[str, ...]
    labels: Labels
    notes: tuple[str, ...]

    def initial_head(self, seed: int) -> dict[str, Tensor]:
        """The head's tensors before training, for an adapter of this seed."""
        return initial_head(self.model, self.head, self.new_head, seed)

    @property
    def mode(self) -> str:
        """The images that it takes, in PIL's words."""
        return "L" if _channels(self.model.config) == 1 else "RGB"


def load_image_model(
    name: str | Path, labels: Labels, options: ModelOptions, *, fixed_order: bool = False
) -> ImageModel:
    """Load a classifier of images and its processor.

    Args:
        name: A folder or a hub name, of a model of transformers or of timm.
        labels: What it is to predict.
        options: How it is loaded.
        fixed_order: Whether the labels' order is an adapter's and must stay; else that of a trained head is taken.

    Raises:
        ConfigError: There is no such model, it doesn't classify images, or a package is missing.
    """
    source = ModelSource(str(name), options)
    with requires_extra("Models of images", "images"):
        import_module("transformers")
        import_module("PIL")
    with silence_transformers(), torch.random.fork_rng(devices=[]):
        config = source.load("AutoConfig")
        _as_classifier(config)
        processor = _processor_of(source)
        ordered, told = match_head(config, labels, fixed_order=fixed_order, classifier="ImageClassification")
        labels = ordered or labels
        names = labels.by_number
        config.num_labels = len(names)
        config.id2label, config.label2id = names, {label: i for i, label in names.items()}
        model, missing = source.load_model(AUTO_CLASS, in_head=_in_head, config=config)
    head = tuple(_output_modules(model))
    lost = {parameter.rpartition(".")[0] for parameter in missing}
    if strange := sorted(lost.difference(head)):
        raise ConfigError(
            f'The checkpoint of "{name}" has no weights for {len(strange)} modules of the base ({strange[0]}, ...); '
            "is it one of this model?"
        )
    # A head with as many outputs, for other labels, was loaded from the checkpoint; reinitialise it.
    new = tuple(module for module in head if module in lost or told is not None)
    with torch.no_grad():
        for module in new:
            for parameter in model.get_submodule(module).parameters(recurse=False):
                parameter.zero_()
    model.eval().to(torch.device(options.device))
    loaded = ImageModel(
        model=model,
        processor=processor,
        call=find_inputs(model),
        head=head,
        new_head=new,
        labels=labels,
        notes=(told,) if told and not fixed_order else (),
    )
    if new:
        model.load_state_dict(loaded.initial_head(seed=0), strict=False)
    return loaded


def conv_targets(model: nn.Module, head: Iterable[str]) -> tuple[str, ...] | None:
    """The convolutions of a model that has no linear layers but its head; None where it has some."""
    outside = [
        (name, row.name)
        for name, module in model.named_modules()
        if (row := layer_type_of(module)) is not None and not any(f"{name}.".startswith(f"{of}.") for of in head)
    ]
    if any(kind == "Linear" for _, kind in outside):
        return None
    return tuple(name for name, kind in outside if kind.startswith("Conv")) or None


def _as_classifier(config: Any) -> None:
    """Write a configuration of timm's as transformers writes it for a classifier."""
    if getattr(config, "model_type", "") != "timm_wrapper":
        return
    if config.model_args:  # may repeat the number of outputs, which transformers gives by itself
        config.model_args = {key: value for key, value in config.model_args.items() if key != "num_classes"}
    if config.num_labels:
        config.architectures = ["TimmWrapperForImageClassification"]


def _processor_of(source: ModelSource) -> Any:
    try:
        return source.load("AutoImageProcessor")
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            raise ConfigError(
                f'The image processor of "{source.name}" needs a package that is not installed: '
                f'{" ".join(str(cause).split())[:150]} Run pip install ".[images]" in a checkout of Rankwise.'
            ) from error
        raise ConfigError(
            f'"{source.name}" has no image processor that transformers knows (preprocessor_config.json); take a model '
            f"of images, or put that file into its folder. ({error})"
        ) from error


def _output_modules(model: Any) -> list[str]:
    """The modules that turn features into logits: of timm what the model calls its classifier, of transformers what
    stands outside the base."""
    timm_model = getattr(model, "timm_model", None)
    if timm_model is not None:
        classifiers = timm_model.get_classifier()
        found = classifiers if isinstance(classifiers, tuple | list) else [classifiers]
        inside = {id(module) for one in found for module in one.modules()}
    else:
        base = f"{model.base_model_prefix}."
        inside = {id(module) for name, module in model.named_modules() if not f"{name}.".startswith(base)}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and any(True for _ in module.parameters(recurse=False))
    ]


def _in_head(model: Any, parameter: str) -> bool:
    return parameter.rpartition(".")[0] in _output_modules(model)


def _channels(config: Any) -> int:
    """Of an image that the model takes."""
    pretrained: Any = getattr(config, "pretrained_cfg", None)
    if pretrained:
        return pretrained["input_size"][0]
    return getattr(config, "num_channels", 3)
