"""What an adapter trains: its A and B, what its variant has beside them, and what it trains whole."""

from torch import nn

from rankwise.lora.adapter import layers_with
from rankwise.lora.trained_modules import whole_parameters


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
    pairs = {path: (lora.A[name], lora.B[name]) for path, (_, lora) in layers_with(model, name).items()}
    first = {id(A): path for path, (A, _) in reversed(pairs.items())}
    return {path: pair for path, pair in pairs.items() if first[id(pair[0])] == path}


def trainable_parameters(model: nn.Module, name: str = "default") -> list[nn.Parameter]:
    """Return A and B of every module of an adapter, what its variant and what it trains whole, for the optimiser.

    Raises:
        AdapterError: The model has no such adapter.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(3, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> len(trainable_parameters(layer))
        2
    """
    # An A without numbers, of single rows of a weight, is no parameter to train.
    pairs = [parameter for pair in adapter_tensors(model, name).values() for parameter in pair if parameter.numel()]
    own = dict.fromkeys(tensor for _, lora in layers_with(model, name).values() for tensor in lora.own(name).values())
    return [*pairs, *own, *whole_parameters(model, name)]


def count_parameters(model: nn.Module, name: str = "default") -> int:
    """Return the trainable numbers of an adapter: r (d_in + d_out) of every module, and what is trained whole.

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
