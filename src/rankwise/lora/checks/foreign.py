"""Refuse models that adapters can't be attached to: peft's, and sharded ones."""

from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.targets.modules import walk

_PEFT = "peft.tuners.tuners_utils.BaseTunerLayer"
_FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


def _is_a(module: nn.Module, name: str) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" == name for cls in type(module).__mro__)


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this process has only a part of a tensor (FSDP2, tensor parallelism)."""
    return hasattr(tensor, "full_tensor")


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
    for module in model.modules():
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
