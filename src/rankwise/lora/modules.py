"""The modules of a model, each once, with all its paths; adapters are passed over."""

from collections.abc import Iterator

from torch import nn

ADAPTER_CHILD = "lora"
"""Name of the submodule that holds A and B of an adapted layer."""

Named = tuple[nn.Module, list[str]]
"""A module and all its paths."""


class Adapter(nn.Module):
    """A submodule that belongs to an adapter, not to the base."""


def child_name(parameter: str) -> str:
    """Return the name of the submodule that holds the adapters of a parameter.

    Examples:
        >>> child_name("weight"), child_name("weight_ih_l0")
        ('lora', 'lora_weight_ih_l0')
    """
    return ADAPTER_CHILD if parameter == "weight" else f"{ADAPTER_CHILD}_{parameter}"


def walk(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every path and its module, a shared module under each of its names; adapters are passed over."""
    yield name, model
    for child, module in model._modules.items():  # pyright: ignore[reportPrivateUsage]
        if module is not None and not isinstance(module, Adapter):
            yield from walk(module, f"{name}.{child}" if name else child)


def named_once(model: nn.Module) -> list[Named]:
    """Return every module once, in the model's order, with all its paths."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in walk(model):
        names.setdefault(module, []).append(name)
    return list(names.items())
