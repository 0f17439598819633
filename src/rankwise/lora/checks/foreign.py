"""Refuse models that adapters can't be attached to: peft's, and sharded ones."""

import functools

from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.targets.modules import base_modules, found_once, walk

_PEFT = "peft.tuners.tuners_utils.BaseTunerLayer"
_FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


@functools.cache
def _names_of(kind: type[nn.Module]) -> frozenset[str]:
    """The full names of a class and of those that it inherits from."""
    return frozenset(f"{cls.__module__}.{cls.__qualname__}" for cls in kind.__mro__)


def _is_a(module: nn.Module, name: str) -> bool:
    return name in _names_of(type(module))


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this process has only a part of a tensor (FSDP2, tensor parallelism)."""
    # An attribute that isn't there takes long to be found missing.
    return type(tensor) not in (nn.Parameter, Tensor) and hasattr(tensor, "full_tensor")


def check_unwrapped_by_peft(model: nn.Module) -> None:
    """Raise for a model that peft has wrapped since `inject`: names of its modules are peft's.

    Raises:
        AdapterError: It has adapters of peft's.
    """
    for path, module in walk(model):
        if _is_a(module, _PEFT):
            raise AdapterError(
                f'"{path}" is a {type(module).__name__} of peft, put around the layer after inject, so a file would '
                "have peft's names for it and load on no base. Take peft's adapters off first (unload())."
            )


def check_attachable(model: nn.Module) -> None:
    """Raise for a model whose layers other tools have wrapped.

    Raises:
        AdapterError: It has adapters of peft's, or is sharded.
    """
    found_once(("attachable", model), lambda: _check_attachable(model))


def _check_attachable(model: nn.Module) -> None:
    for module in base_modules(model):
        if _is_a(module, _FSDP):
            raise AdapterError(
                "The model is wrapped in FullyShardedDataParallel, which has flattened its weights. Inject first, then "
                "wrap (use_orig_params=True)."
            )
    for path, module in walk(model):
        if _is_a(module, _PEFT):
            raise AdapterError(
                f'"{path}" is a {type(module).__name__} of peft, and its own A and B would be adapted. Take peft\'s '
                "adapters off first (merge_and_unload() or unload()), or load their files with load_adapter."
            )
        own = module._parameters.items()  # pyright: ignore[reportPrivateUsage]
        if sharded := next((name for name, p in own if p is not None and is_sharded(p)), None):
            raise AdapterError(
                f'"{path}.{sharded}" is sharded over processes (fully_shard or tensor parallelism), and gradients of '
                "an adapter added now would not be summed over them. Inject first, then shard."
            )
