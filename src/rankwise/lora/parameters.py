"""The trained parameters of an adapter: its variant's tensors (for LoRA A and B), and those trained in full."""

from torch import nn

from rankwise.lora.adapter import layers_with
from rankwise.lora.trained_modules import replacement_parameters


def adapter_tensors(model: nn.Module, name: str = "default") -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return A and B of an adapter by module name: the parameters themselves.

    Modules that share a weight share its adapter, which is returned once, under the first.

    Raises:
        AdapterError: The model has no such adapter.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(3, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> {name: (A.shape, B.shape) for name, (A, B) in adapter_tensors(layer).items()}
        {'': (torch.Size([1, 3]), torch.Size([2, 1]))}
    """
    layers = {path: lora for path, (_, lora) in layers_with(model, name).items()}
    # Layers that share a weight have the same trained parameters; A itself may be one that all layers have.
    trained = {path: tuple(map(id, lora.trained(name))) for path, lora in layers.items()}
    first = {own: path for path, own in reversed(trained.items())}
    chosen = {path: lora.parameters_of(name) for path, lora in layers.items() if first[trained[path]] == path}
    return {path: (held["A"], held["B"]) for path, held in chosen.items() if {"A", "B"} <= held.keys()}


def trainable_parameters(model: nn.Module, name: str = "default") -> list[nn.Parameter]:
    """Return what an adapter trains in every module (A and B as a rule), and what it trains in full, for the optimiser.

    Raises:
        AdapterError: The model has no such adapter.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(3, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> len(trainable_parameters(layer))
        2
    """
    own = dict.fromkeys(tensor for _, lora in layers_with(model, name).values() for tensor in lora.trained(name))
    return [*own, *replacement_parameters(model, name)]


def count_parameters(model: nn.Module, name: str = "default") -> int:
    """Return the trainable numbers of an adapter: of LoRA r (d_in + d_out) a module, and what is trained in full.

    Raises:
        AdapterError: The model has no such adapter.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(3, 2)
        >>> _ = inject(layer, LoRAConfig(r=4))
        >>> count_parameters(layer)
        20
    """
    return sum(parameter.numel() for parameter in trainable_parameters(model, name))
