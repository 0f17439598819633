"""The heads of classifiers' checkpoints: used with their labels in their order, or reinitialised."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.tokens import text_config


def match_head(
    config: Any, labels: Labels | None, *, fixed_order: bool = False, classifier: str = "SequenceClassification"
) -> tuple[Labels | None, str | None]:
    """The labels in the order in which a checkpoint's head has them.

    Args:
        config: The checkpoint's configuration.
        labels: What is to be predicted.
        fixed_order: Whether the labels' order must stay.
        classifier: What the names of classes that classify have in them.

    Returns:
        The labels, and why the head can't be taken over; None where it can, or where there is none.
    """
    names = own_names(config, classifier)
    if labels is None or names is None:
        return labels, None
    if labels.kind == "number":
        return labels, None if len(names) == 1 else _other(names, labels)
    place = {_plainly(name, i): i for i, name in enumerate(names)}
    places = [place.get(name.casefold()) for name in labels.names]
    if len(place) != len(names) or len(names) != len(labels.names) or None in places or len({*places}) != len(places):
        return labels, _other(names, labels)
    ordered = tuple(name for _, name in sorted(zip(places, labels.names, strict=True), key=lambda pair: pair[0] or 0))
    if fixed_order and ordered != labels.names:
        return labels, _other(names, labels)
    return replace(labels, names=ordered), None


def own_names(config: Any, classifier: str) -> list[str] | None:
    """The label names of a classifier's checkpoint; None if its architecture is not a classifier."""
    if not any(classifier in name for name in config.architectures or ()):
        return None
    names: dict[int, str] | None = getattr(config, "id2label", None) or getattr(text_config(config), "id2label", None)
    return None if names is None else [str(names[i]) for i in sorted(names)]


def _plainly(name: str, i: int) -> str:
    """A label for comparing; LABEL_3 is how transformers calls an output without a name."""
    return str(i) if name == f"LABEL_{i}" else name.strip().casefold()


def _other(names: list[str], labels: Labels) -> str:
    ours = "numbers" if labels.kind == "number" else _shown(labels.names)
    return f"The model's head was trained for {_shown(names)}, not for {ours}; a new one begins from the seed."


def _shown(names: Any) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


@torch.no_grad()
def reset_outputs(model: Any, n: int) -> list[str]:
    """Mark the output layer of a classifier as new.

    Args:
        model: A classifier of transformers.
        n: How many outputs it has.

    Returns:
        The names of its parameters.
    """
    base = f"{model.base_model_prefix}."
    modules: list[tuple[str, nn.Module]] = [
        (name, module)
        for name, module in model.named_modules()
        if not name.startswith(base) and any(len(p) == n for p in module.parameters(recurse=False) if p.dim())
    ]
    if not modules:
        return []
    name, module = modules[-1]
    for parameter in module.parameters(recurse=False):
        if parameter.dim() == 1:
            parameter.zero_()
    return [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
