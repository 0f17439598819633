"""A language model with saved adapters on it: to be evaluated, asked, or merged."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import AdapterFileError, ConfigError
from rankwise.experiment import find_device
from rankwise.files import load_adapter
from rankwise.lora.named import activate, disabled
from rankwise.tasks.text.chat import set_chat_template
from rankwise.tasks.text.labels import FILE as LABELS
from rankwise.tasks.text.labels import Labels, read_labels
from rankwise.tasks.text.models import ModelOptions, TextModel, load_text_model
from rankwise.tasks.text.prompting import read_prompting
from rankwise.tasks.text.sft import SftOptions
from rankwise.tasks.text.use_options import UseOptions

BASE = "base"
"""What the base without an adapter is called."""


@dataclass(frozen=True)
class Adapted:
    """A model and its adapters.

    Args:
        loaded: The model, in eval mode.
        task: "classify" or "sft".
        labels: A classifier's.
        how: How prompts are written.
        names: What the adapters are called, as the user sees them, in order.
        notes: What the user should be told.
    """

    loaded: TextModel
    task: str
    labels: Labels | None
    how: SftOptions
    names: tuple[str, ...]
    notes: tuple[str, ...]

    @contextmanager
    def acting(self, name: str) -> Generator[None]:
        """Let one adapter act alone, or none (`BASE`), for the length of a `with` block."""
        if name != BASE:
            activate(self.loaded.model, _inside(self.names.index(name)))
            yield
        elif self.names:
            with disabled(self.loaded.model):
                yield
        else:
            yield


def load_adapted(folders: Sequence[Path], options: UseOptions) -> Adapted:
    """Load a base and put saved adapters on it.

    Args:
        folders: The adapters'; none for the base alone.
        options: How.

    Raises:
        ConfigError: The base is not known, or can't be loaded.
        AdapterFileError: An adapter is missing, damaged or doesn't fit the base.
        DataError: Adapters have different labels, or a file beside one is damaged.
    """
    find_device(options.device)
    named = {folder: _base_of(folder) for folder in folders}
    bases = {base for base in named.values() if base}
    if options.model is None and len(bases) != 1:
        said = f"the adapters name {len(bases)} bases ({', '.join(sorted(bases))})" if bases else "no adapter names one"
        raise ConfigError(f"The base is not known: {said}; give it with --model.")
    model = options.model or bases.pop()
    labelled = [folder for folder in folders if (folder / LABELS).exists()]
    task = options.task or ("classify" if labelled else "sft")
    labels = _labels(folders, labelled) if task == "classify" else None
    loaded = load_text_model(
        model,
        task,
        labels,
        ModelOptions(
            dtype=options.dtype,
            device=options.device,
            attention=options.attention,
            trust_remote_code=options.trust_remote_code,
            pooling=options.pooling,
        ),
    )
    if options.quantize is not None:
        from rankwise.quantising import quantize

        quantize(loaded.model, options.quantize, skip=loaded.head)
    how = _prompting(folders, options)
    if how.chat_template is not None:
        set_chat_template(loaded.tokenizer, how.chat_template)
    for i, folder in enumerate(folders):
        load_adapter(loaded.model, folder, _inside(i))
    loaded.model.eval()
    return Adapted(loaded, task, labels, how, _names(folders), loaded.notes)


def _inside(i: int) -> str:
    """What an adapter is called in the model, where names have no dots."""
    return f"adapter_{i}"


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The folders' last names where these differ, and none is called as the base; else their whole paths.

    Examples:
        >>> _names([Path("a/r1"), Path("a/r2")]), _names([Path("a/r1"), Path("b/r1")])
        (('r1', 'r2'), ('a/r1', 'b/r1'))
    """
    short = [folder.resolve().name if folder.name in ("", "..") else folder.name for folder in folders]
    unique = len({*short, BASE}) == len(folders) + 1
    return tuple(short) if unique else tuple(str(folder) for folder in folders)


def _base_of(folder: Path) -> str | None:
    """What an adapter says its base is.

    Raises:
        AdapterFileError: There is no adapter.
    """
    path = folder / "adapter_config.json"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
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


def _labels(folders: Sequence[Path], labelled: Sequence[Path]) -> Labels:
    if not labelled:
        raise ConfigError(
            f"There is no {LABELS} in {', '.join(map(str, folders)) or 'an adapter, as none is given'}; a classifier's "
            "labels are saved beside its adapter."
        )
    labels = read_labels(labelled[0])
    for folder in labelled[1:]:
        labels.check_same(folder)
    return labels


def _prompting(folders: Sequence[Path], options: UseOptions) -> SftOptions:
    """As the first adapter was taught, unless the user says otherwise."""
    kept = next((found for folder in folders if (found := read_prompting(folder))), None)
    return SftOptions(
        max_length=options.max_length,
        chat=options.chat if options.chat is not None or kept is None else kept.chat,
        chat_template=options.chat_template or (kept.chat_template if kept else None),
        separator=options.separator if options.separator is not None else (kept.separator if kept else ""),
    )
