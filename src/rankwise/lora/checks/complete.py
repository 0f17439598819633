"""Check that an adapter is still complete: a layer that is replaced after `inject` takes its A and B with it."""

from torch import nn

from rankwise.errors import AdapterError
from rankwise.lora.adapter import layers_with
from rankwise.lora.trained_modules import replacement_tensors


def lost_paths(model: nn.Module, name: str) -> list[str]:
    """Return the paths at which an adapter was attached and is no longer.

    Layers may have other paths than at that time: inside a larger model, or taken out of one.

    Raises:
        AdapterError: The model has no such adapter.
    """
    layers = layers_with(model, name)
    attached = next((lora.attached[name] for _, lora in layers.values() if name in lora.attached), None)
    if attached is None:
        return []
    return [
        *_missing(attached.adapted, list(layers)),
        *_missing(attached.replacements, list(replacement_tensors(model, name))),
    ]


def _missing(before: tuple[str, ...], now: list[str]) -> list[str]:
    if len(now) >= len(before):
        return []
    there = {*now}
    return [path for path in before if path not in there and not any(_same_end(path, other) for other in now)] or [
        f"{len(before) - len(now)} of {len(before)}"
    ]


def _same_end(one: str, other: str) -> bool:
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    return longer.endswith(f".{shorter}")


def lost_message(name: str, lost: list[str]) -> str:
    """Return the fact, with paths."""
    shown = ", ".join(f'"{path}"' for path in lost[:5]) + (", ..." if len(lost) > 5 else "")
    return (
        f'Adapter "{name}" was attached to {shown}, which no longer holds it: the layer was replaced (a resized '
        "embedding, a new head) or removed after inject, and its A and B went with it."
    )


def check_complete(model: nn.Module, name: str) -> None:
    """Raise unless all of an adapter is still in the model.

    Raises:
        AdapterError: A part is missing.
    """
    if lost := lost_paths(model, name):
        raise AdapterError(
            f"{lost_message(name, lost)} Put the adapted layer back, or change the model first and then inject."
        )
