"""An adapter merged into its base, as a folder that transformers loads."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, OutputError
from rankwise.lora.inject import eject
from rankwise.lora.merge import MergeReport, merge
from rankwise.tasks.text.adapted import BASE, Adapted, load_adapted
from rankwise.tasks.text.heads import MeanPooledClassifier
from rankwise.tasks.text.quiet import quiet
from rankwise.tasks.text.templates import chat_template
from rankwise.tasks.text.trained import read_trained
from rankwise.tasks.text.use_options import NOT_QUANTIZED, UseOptions

HEAD = "head.safetensors"


@dataclass(frozen=True)
class Merged:
    """What was written.

    Args:
        folder: Where.
        report: How well each weight holds its delta.
        notes: What the user should be told.
    """

    folder: Path
    report: MergeReport
    notes: tuple[str, ...]


def check_out(folder: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        OutputError: It does.
    """
    if folder.name in ("", ".."):
        raise OutputError(f"{folder} is a folder of yours; give --out a new one.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there and not empty; give --out a new folder.")


def load_to_merge(folder: Path, options: UseOptions) -> Adapted:
    """A base with one adapter on it, to be merged: the base as it is, also where it was quantised in training.

    Raises:
        RankwiseError: As `load_adapted`.
    """
    trained = read_trained(folder)
    kept = trained.quantize if trained else None
    if kept is None or options.quantize is not None:
        return load_adapted([folder], options, rounded=True)
    adapted = load_adapted([folder], replace(options, quantize=NOT_QUANTIZED))
    note = (
        f"The adapter was trained over the base in {kept}, and is merged into the base as it is, so that "
        f"outputs differ a little from those in training; --quantize {kept} merges it into the rounded weights."
    )
    return replace(adapted, notes=(*adapted.notes, note))


def merge_into_folder(adapted: Adapted, folder: Path) -> Merged:
    """Merge the one adapter, and write model, tokenizer and labels. The model is merged for good.

    Args:
        adapted: A model with one adapter.
        folder: Where; it must not be there, or be empty.

    Raises:
        AdapterError: The adapter can't be merged.
        ConfigError: There is not one adapter.
        OutputError: The folder holds something, or can't be written.
    """
    if len(adapted.names) != 1:
        raise ConfigError(f"{len(adapted.names)} adapters are given; one is merged at a time.")
    check_out(folder)
    model = adapted.loaded.model
    pooled = isinstance(model, MeanPooledClassifier)
    body: Any = model.encoder if isinstance(model, MeanPooledClassifier) else model
    report = merge(model, keep_base=False, dequantize=True)
    eject(model)
    temporary = folder.with_name(f".{folder.name}.unfinished")
    try:
        with quiet():
            body.save_pretrained(temporary)
        with chat_template(adapted.loaded.tokenizer, adapted.way(BASE).chat_template):
            adapted.loaded.tokenizer.save_pretrained(temporary)
        if pooled:
            from safetensors.torch import save_file

            head = model.get_submodule("head").state_dict()
            save_file({key: value.detach().contiguous() for key, value in head.items()}, temporary / HEAD)
        if adapted.labels is not None:
            adapted.labels.save(temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} can't be written ({error.strerror or error}); give --out another one.") from error
    notes = list(adapted.notes)
    if pooled:
        notes.append(
            "transformers has no class for a head on the mean of an encoder's outputs: the folder holds the encoder "
            f"({type(body).__name__}), and the head, weight and bias, in {HEAD}."
        )
    return Merged(folder, report, tuple(notes))
