"""Files of a model of which several processes have a part each: all gather, one writes."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rankwise.lora.checks.foreign import is_sharded
from rankwise.lora.targets.modules import every_module


@contextmanager
def written_once(model: nn.Module | None) -> Generator[bool]:
    """Tell whether this process writes a file inside the block; at its end, wait until that one has.

    Args:
        model: Sharded over processes (FSDP2, tensor parallelism), all of which enter the block; any other model, or
            None, is this process's alone.

    Examples:
        >>> with written_once(nn.Linear(2, 2)) as mine:
        ...     mine
        True
    """
    modules = [] if model is None else every_module(model)
    parts: list[Any] = [p for m in modules for p in m._parameters.values() if p is not None and is_sharded(p)]  # pyright: ignore[reportPrivateUsage]
    if not parts:
        yield True
        return
    import torch.distributed as dist

    mesh = parts[0].device_mesh
    try:
        yield not any(mesh.get_coordinate() or ())
    finally:
        for dimension in range(mesh.ndim):
            dist.barrier(group=mesh.get_group(dimension))
