"""A language model with saved adapters on it: to be evaluated, asked, or merged."""

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rankwise.adapter_files import load_adapter
from rankwise.errors import AdapterError, AdapterFileError, ConfigError
from rankwise.lora.active import activate, disabled
from rankwise.sweeps.storage.owned import why_no_adapter
from rankwise.sweeps.storage.working_copy import shown
from rankwise.tasks.settings import shared
from rankwise.tasks.text.data.labels import FILE as LABELS
from rankwise.tasks.text.data.labels import Labels, read_labels
from rankwise.tasks.text.encode.sft import SftOptions
from rankwise.tasks.text.encode.templates import read_template, writes_date
from rankwise.tasks.text.model.generation_settings import put_aside
from rankwise.tasks.text.model.models import ModelOptions, TextModel, load_text_model
from rankwise.tasks.text.prompting import Prompting, read_prompting
from rankwise.tasks.text.trained import Trained, read_trained
from rankwise.tasks.text.use.options import NOT_QUANTIZED, UseOptions
from rankwise.train.machine.device import device_note, find_device
from rankwise.writing import read_regular

Kept = TypeVar("Kept")

BASE_NAME = "base"
"""The name of the base without an adapter."""


@dataclass(frozen=True)
class ServedModel:
    """A model and its adapters.

    Args:
        loaded: The model, in eval mode.
        task: "classify" or "sft".
        labels: A classifier's.
        names: What the adapters are called, as the user sees them, in order.
        ways: How each of them makes tokens of examples; of the base alone, its one way.
        max_length: The most tokens of a prompt with its answer, where they are written; None takes the model's context.
        notes: Notes for the user.
        folders: Where the adapters lie, in order.
    """

    loaded: TextModel
    task: str
    labels: Labels | None
    names: tuple[str, ...]
    ways: tuple[SftOptions, ...]
    max_length: int | None
    notes: tuple[str, ...]
    folders: tuple[Path, ...] = ()

    def way(self, name: str) -> SftOptions:
        """One adapter's tokenisation; the base uses the first adapter's."""
        return self.ways[0 if name == BASE_NAME else self.names.index(name)]

    def one_way(self) -> SftOptions:
        """How all of them do, for figures that can be compared.

        Raises:
            ConfigError: They differ.
        """
        first = asdict(self.ways[0])
        for way in self.ways[1:]:
            if differing := [key for key, value in asdict(way).items() if value != first[key]]:
                flag = differing[0].replace("_", "-")
                raise ConfigError(
                    f"The adapters were trained with different --{flag}, so their figures can't be compared; give "
                    f"--{flag}, or evaluate them one at a time."
                )
        return self.ways[0]

    @contextmanager
    def acting(self, name: str) -> Generator[None]:
        """Activate only one adapter, or none (`BASE_NAME`), inside a `with` block."""
        with acting_alone(self.loaded.model, self.names, name):
            yield


@contextmanager
def acting_alone(model: nn.Module, names: Sequence[str], name: str) -> Generator[None]:
    """Activate only one adapter, or none (`BASE_NAME`), inside a `with` block.

    Args:
        model: The model.
        names: Of its adapters, in the order in which they were put on it.
        name: Which of them.
    """
    if name != BASE_NAME:
        activate(model, name_inside(names.index(name)))
        yield
    elif names:
        with disabled(model):
            yield
    else:
        yield


def reads_images(folders: Sequence[Path]) -> bool:
    """Whether saved adapters classify images; `rankwise.tasks.text.use.images` serves these."""
    return any(trained is not None and trained.reads == "images" for trained in map(read_trained, folders))


def model_of(folders: Sequence[Path], given: str | None) -> str:
    """The base of saved adapters.

    Args:
        folders: The adapters'.
        given: What the user says it is; None takes what the adapters name.

    Raises:
        ConfigError: They name none, or different ones.
        AdapterFileError: An adapter is missing.
    """
    bases = {base for base in map(base_of, folders) if base}
    if given is None and len(bases) != 1:
        said = f"the adapters name {len(bases)} bases ({', '.join(sorted(bases))})" if bases else "no adapter names one"
        raise ConfigError(f"The base is not known: {said}; give it with --model.")
    return given or bases.pop()


def load_adapted(folders: Sequence[Path], options: UseOptions, *, rounded: bool = False) -> ServedModel:
    """Load a base and put saved adapters on it.

    Args:
        folders: The adapters'; none for the base alone.
        options: How.
        rounded: Whether a base in few bits only has the values that these stand for, and its layers stay what they are.

    Raises:
        ConfigError: The base is not known, or can't be loaded, or the adapters were trained over it in different forms.
        AdapterFileError: An adapter is missing, damaged or doesn't fit the base.
        DataError: Adapters have different labels, or a file beside one is damaged.
    """
    device = find_device(options.device)
    model = model_of(folders, options.model)
    if reads_images(folders):
        raise ConfigError(
            f"{', '.join(map(str, folders))} classifies images; rankwise predict and rankwise evaluate take it, and "
            "README.md in its folder shows how transformers loads it."
        )
    labelled = any((folder / LABELS).exists() for folder in folders)
    task = options.task or ("classify" if labelled else "sft")
    labels = labels_of(folders) if task == "classify" else None
    trained = [kept or Trained() for kept in _kept(folders, read_trained)]
    pooling = options.pooling or _same("pooling", map(_pooling, trained, folders or [None]))
    quantized = options.quantize or _same("quantize", (kept.quantize or NOT_QUANTIZED for kept in trained))
    loaded = load_text_model(
        model,
        task,
        labels,
        ModelOptions(**shared(options, ModelOptions, device=str(device), pooling=pooling)),
        fixed_order=True,
    )
    if quantized != NOT_QUANTIZED:
        from rankwise.quantising import quantize, round_weights

        (round_weights if rounded else quantize)(loaded.model, quantized, skip=loaded.head)
    taught = _kept(folders, read_prompting)
    dates = list(dict.fromkeys(kept.date for kept in taught if kept is not None and kept.date is not None))
    date = options.date or (dates[0] if dates else None)
    ways = tuple(_way(*kept, options, date) for kept in zip(trained, taught, strict=True))
    for i, folder in enumerate(folders):
        load_adapter(loaded.model, folder, name_inside(i))
    loaded.model.eval()
    if folders and task == "sft":
        _see_readers(loaded)
    names, notes = served_names(folders), (*device_note(options.device, device), *loaded.notes)
    if task == "sft":
        notes += (*put_aside(loaded.model, loaded.tokenizer),)
    if len({(way.chat, way.chat_template, way.separator) for way in ways}) > 1:
        notes += (
            f"The adapters were taught prompts in different ways; each is asked in its own, the base as {names[0]}.",
        )
    if len(dates) > 1 and options.date is None:
        notes += (
            f"The adapters were taught on different dates; the chat template writes {date}. --date sets another.",
        )
    elif date is None and task == "sft" and writes_date(loaded.tokenizer):
        notes += ("The chat template writes today's date, so figures and answers change with it; --date sets one.",)
    return ServedModel(loaded, task, labels, names, ways, options.max_length, notes, tuple(folders))


def name_inside(i: int) -> str:
    """An adapter's name in the model, without dots."""
    return f"adapter_{i}"


def served_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The folders' last names where these differ, and none is called as the base; else their whole paths.

    Examples:
        >>> served_names([Path("a/r1"), Path("a/r2")]), served_names([Path("a/r1"), Path("b/r1")])
        (('r1', 'r2'), ('a/r1', 'b/r1'))
    """
    short = [folder.resolve().name if folder.name in ("", "..") else folder.name for folder in folders]
    unique = len({*short, BASE_NAME}) == len(folders) + 1
    return tuple(short) if unique else tuple(map(shown, folders))


@torch.no_grad()
def _see_readers(loaded: TextModel) -> None:
    """Run the model once without a cache: what reads a weight without calling its layer is found in the first forward,
    and a forward that fills a cache can't be taken back."""
    device = next(loaded.model.parameters()).device
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    with suppress(AdapterError):  # which says that such a weight was found, and to call the model again
        loaded.call(loaded.model, batch)


def base_of(folder: Path) -> str | None:
    """The base that an adapter names.

    Raises:
        AdapterFileError: There is no adapter.
    """
    path = folder / "adapter_config.json"
    try:
        content: Any = json.loads(read_regular(path))
    except OSError as error:
        if why := why_no_adapter(folder):
            raise AdapterFileError(why) from error
        raise AdapterFileError(
            f"{path} can't be read ({error.strerror}); an adapter's folder holds adapter_config.json and "
            "adapter_model.safetensors."
        ) from error
    except ValueError as error:
        raise AdapterFileError(f"{path} is no JSON file; it is damaged.") from error
    name = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(name, str):
        return None
    # A base inside a run directory is named from the adapter's folder.
    beside = folder / name
    return str(beside) if name.startswith("..") and beside.exists() else name


def _pooling(trained: Trained, folder: Path | None) -> str:
    """The pooling of an adapter's head; for older adapters, inferred from their settings."""
    if trained.pooling is not None or folder is None:
        return trained.pooling or "auto"
    fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return "mean" if fields.get("modules_to_save") == ["head"] and not fields.get("task_type") else "model"


def labels_of(folders: Sequence[Path]) -> Labels:
    """The labels of classifiers.

    Raises:
        ConfigError: None are saved next to an adapter.
        DataError: The adapters have different ones.
    """
    labelled = [folder for folder in folders if (folder / LABELS).exists()]
    if not labelled:
        raise ConfigError(
            f"There is no {LABELS} in {', '.join(map(str, folders)) or 'an adapter, as none is given'}; a classifier's "
            "labels are saved next to its adapter."
        )
    labels = read_labels(labelled[0])
    for folder in labelled[1:]:
        labels.check_same(folder, f"that in {labelled[0]}", "use adapters of other labels one at a time")
    return labels


def _kept(folders: Sequence[Path], read: Callable[[Path], Kept | None]) -> list[Kept | None]:
    """Each adapter's file of this name; where it has none, that of the first adapter with one."""
    found = [read(folder) for folder in folders] or [None]
    first = next((own for own in found if own is not None), None)
    return [first if own is None else own for own in found]


def _same(what: str, values: Iterable[str]) -> str:
    """A setting of the one base that all adapters share.

    Raises:
        ConfigError: They differ.
    """
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        raise ConfigError(
            f"The adapters were trained with different --{what} ({', '.join(found)}); "
            f"give --{what}, or use them one at a time."
        )
    return found[0]


def _way(trained: Trained, taught: Prompting | None, options: UseOptions, date: str | None) -> SftOptions:
    """The adapter's training setting, unless the user sets another."""
    template = None if options.chat_template is None else read_template(options.chat_template)
    return SftOptions(
        loss_on=options.loss_on or trained.loss_on or "answer",
        max_length=trained.max_length if options.max_length is None else options.max_length,
        chat=options.chat if options.chat is not None or taught is None else taught.chat,
        chat_template=template or (taught.chat_template if taught else None),
        separator=options.separator if options.separator is not None else (taught.separator if taught else ""),
        date=date,
    )
