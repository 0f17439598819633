"""Tensors on the meta device: their numbers are where accelerate has put them, or nowhere."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from rankwise.errors import AdapterError


def has_data(tensor: Tensor) -> bool:
    """Tell whether a tensor has numbers: neither on the meta device nor a fake one, which has a shape only.

    Examples:
        >>> has_data(torch.ones(1)), has_data(torch.ones(1, device="meta"))
        (True, False)
    """
    if tensor.is_meta:
        return False
    plain = type(tensor) in (nn.Parameter, Tensor) and not torch._is_functional_tensor(tensor)  # pyright: ignore
    # What torch asks otherwise takes as long as a small operation.
    return (plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)) or not is_fake(tensor)  # pyright: ignore


def register(owner: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module a parameter or buffer, as it is.

    Inside accelerate's `init_empty_weights` whatever is registered is replaced by a tensor without data.
    """
    if not isinstance(tensor, nn.Parameter):
        owner.register_buffer(name, tensor)
        owner._buffers[name] = tensor  # pyright: ignore[reportPrivateUsage]
        return
    if type(owner) is nn.ParameterDict:
        owner._keys[name] = None  # pyright: ignore[reportPrivateUsage]  (all that an item's assignment comes to)
    else:
        owner.register_parameter(name, tensor)
    owner._parameters[name] = tensor  # pyright: ignore[reportPrivateUsage]


def in_fake_mode() -> bool:
    """Tell whether tensors that are made now are fake, as where a program only looks at shapes and memory."""
    fake: Any = torch._C._TorchDispatchModeKey.FAKE  # pyright: ignore
    return torch._C._get_dispatch_mode(fake) is not None  # pyright: ignore


def data_of(owner: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer with its numbers, fetched where accelerate's hook has them (offload to CPU or disk).

    Raises:
        AdapterError: They are nowhere.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> data_of(layer, "bias") is layer.bias
        True
    """
    tensor: Tensor = getattr(owner, name)
    if not tensor.is_meta:
        return tensor
    hook: Any = getattr(owner, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # accelerate's hooks come one by one, or in a row
        values: Any = getattr(one, "weights_map", None)
        if values is None:
            continue
        try:
            found: Tensor = values[name]
        except KeyError:
            continue
        device = getattr(one, "execution_device", None)
        return found if device is None else found.to(device)
    raise AdapterError(
        f'"{name}" of a {type(owner).__name__} has no data (it is on the meta device), so an adapter can\'t be '
        "computed with it. Load the model's weights first, and then inject or load_adapter."
    )


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole, where processes have a part of it each (FSDP2): all of them must ask.

    Examples:
        >>> gathered(torch.ones(1))
        tensor([1.])
    """
    if type(tensor) in (nn.Parameter, Tensor):  # an attribute that isn't there takes long to be found missing
        return tensor
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


_calls = [0]
"""How often `discards` has asked: each question has its own numbers."""


def discards(change: Any) -> bool:
    """Tell whether a function that `nn.Module._apply` gets throws values away, as `to_empty` does.

    Examples:
        >>> discards(lambda tensor: tensor.double()), discards(lambda tensor: torch.empty_like(tensor, device="meta"))
        (False, True)
    """
    _calls[0] += 1
    # Memory that was just freed is handed out again, numbers and all: the same ones would prove nothing.
    probe = torch.tensor([_calls[0] % 251 + 1.0, 3.0, -7.0, 0.5], device="cpu", dtype=torch.float32)
    result: Tensor = change(probe.clone())
    return result.is_meta or not torch.equal(result.detach().to("cpu", torch.float32), probe)
