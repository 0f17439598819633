"""An adapter merged into its base, as a folder that transformers loads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, OutputError
from rankwise.locking import staging
from rankwise.lora.inject import eject
from rankwise.lora.merge import MergeReport, merge
from rankwise.tasks.text.card.model_card import AUTO_CLASSES, render
from rankwise.tasks.text.encode.templates import chat_template
from rankwise.tasks.text.encode.tokens import find_context, text_config
from rankwise.tasks.text.model.heads import MeanPooledClassifier
from rankwise.tasks.text.model.silence import silence_transformers
from rankwise.tasks.text.trained import read_trained
from rankwise.tasks.text.use.options import NOT_QUANTIZED, UseOptions
from rankwise.tasks.text.use.sentence_encoder import write_sentence_encoder
from rankwise.tasks.text.use.served import BASE_NAME, ServedModel, load_adapted
from rankwise.writing import plain_mode


@dataclass(frozen=True)
class Merged:
    """A merged model that was written.

    Args:
        folder: Where.
        report: How well each weight holds its delta.
        notes: Notes for the user.
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


def check_merge(names: Sequence[str], folder: Path) -> None:
    """Refuse to merge what isn't one adapter, or into a place that holds something.

    Raises:
        ConfigError: There is not one adapter.
        OutputError: The folder holds something.
    """
    if len(names) != 1:
        raise ConfigError(f"{len(names)} adapters are given; one is merged at a time.")
    check_out(folder)


def load_to_merge(folder: Path, options: UseOptions) -> ServedModel:
    """A base with one adapter, to be merged: the unquantised base, even if it was quantised in training.

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


def merge_into_folder(adapted: ServedModel, folder: Path) -> Merged:
    """Merge the one adapter, and write model, tokenizer and labels. The model is merged for good.

    Args:
        adapted: A model with one adapter.
        folder: Where; it must not be there, or be empty.

    Raises:
        AdapterError: The adapter can't be merged.
        ConfigError: There is not one adapter.
        OutputError: The folder holds something, or can't be written.
    """
    check_merge(adapted.names, folder)
    model = adapted.loaded.model
    body: Any = model.encoder if isinstance(model, MeanPooledClassifier) else model
    report = merge(model, keep_base=False, dequantize=True)
    eject(model)
    tokenizer, labels = adapted.loaded.tokenizer, adapted.labels
    if labels is not None:
        config = text_config(adapted.loaded.config)
        tokenizer.model_max_length = find_context(config, tokenizer, adapted.way(BASE_NAME).max_length)
        body.config.id2label = labels.by_number
        body.config.label2id = {name: i for i, name in labels.by_number.items()}
        body.config.problem_type = labels.problem_type
    try:
        with staging(folder) as temporary:
            with silence_transformers():
                body.save_pretrained(temporary)
            with chat_template(tokenizer, adapted.way(BASE_NAME).chat_template):
                tokenizer.save_pretrained(temporary)
            if isinstance(model, MeanPooledClassifier):
                write_sentence_encoder(temporary, model.head, tokenizer.model_max_length)
            if labels is not None:
                labels.save(temporary)
            for path in temporary.glob("*.safetensors"):
                plain_mode(path)
            (temporary / "README.md").write_text(_card(adapted, folder.name), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} can't be written ({error.strerror or error}); give --out another one.") from error
    return Merged(folder, report, (*adapted.notes, _how_to_load(adapted, folder)))


def _how_to_load(adapted: ServedModel, folder: Path) -> str:
    """The line of Python that loads the merged folder."""
    model = adapted.loaded.model
    if isinstance(model, MeanPooledClassifier):
        return (
            "The classifier reads the mean of the encoder's outputs, for which transformers has no class: "
            f'{folder / "README.md"} has the lines that load it; SentenceTransformer("{folder}").encode(texts) gives '
            "its logits."
        )
    if adapted.labels is not None:
        return f'Load it with pipeline("text-classification", "{folder}"): a {type(model).__name__}, labels included.'
    return f'Load it with {_auto_class(adapted)}.from_pretrained("{folder}").'


def _card(adapted: ServedModel, name: str) -> str:
    """The README.md of the merged folder."""
    model = adapted.loaded.model
    return render(
        "merged.md.jinja",
        name=name,
        base=adapted.loaded.name,
        labels=adapted.labels,
        images=False,
        pooled=isinstance(model, MeanPooledClassifier),
        auto_class=_auto_class(adapted),
        class_name=type(model).__name__,
    )


def _auto_class(adapted: ServedModel) -> str:
    """transformers' class that loads the folder."""
    encoder_decoder = getattr(adapted.loaded.config, "is_encoder_decoder", False)
    if isinstance(adapted.loaded.model, MeanPooledClassifier):
        return "AutoModelForTextEncoding" if encoder_decoder else "AutoModel"
    return AUTO_CLASSES["SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM"]
