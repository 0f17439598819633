"""Several adapters in one model, each under its name: choose which act, rename one, give one other weights."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from torch import nn

from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, adapted_layers, layers_with
from rankwise.lora.whole import activate_whole, check_one_whole, wholes


def activate(model: nn.Module, *names: str) -> None:
    """Choose the adapters that act: their updates are added. Without names none acts.

    Args:
        model: An injected model.
        names: Adapters of this model.

    Raises:
        AdapterError: A name is not an adapter's, or adapters are merged.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1), "first"), inject(layer, LoRAConfig(r=1), "second")
        >>> activate(layer, "first", "second")
        >>> layer.lora.active
        ('first', 'second')
    """
    for name in names:
        layers_with(model, name)
    layers = adapted_layers(model)
    _refuse_merged(layers, "activate")
    check_one_whole(model, names)
    activate_whole(model, names)
    for _, lora in layers.values():
        lora.active = tuple(name for name in dict.fromkeys(names) if name in lora.scale)


@contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Let the model compute as its base does, for the length of a `with` block.

    Args:
        model: An injected model.

    Raises:
        AdapterError: Adapters are merged, so the base's weights are not there.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> with disabled(layer):
        ...     layer.lora.disabled
        True
    """
    layers = adapted_layers(model)
    _refuse_merged(layers, "disabled")
    parts = [lora for _, lora in layers.values()] + [whole for _, whole in wholes(model).values()]
    before = [(part, part.disabled) for part in parts]
    for lora, _ in before:
        lora.disabled = True
    try:
        yield
    finally:
        for lora, was in before:
            lora.disabled = was


def _refuse_merged(layers: Mapping[str, tuple[nn.Module, LoRA]], what: str) -> None:
    for path, (_, lora) in layers.items():
        if lora.merged:
            raise AdapterError(f'"{path}" holds a merged adapter, which {what} can\'t reach; call unmerge first.')
