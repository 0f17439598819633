"""Import timm without torchvision.

timm's models use one class of torchvision's, a frozen batch normalisation that none of them is made with here; the
rest it imports for its data pipelines. So names that stand for nothing are enough to import it.
"""

import enum
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType

from torch import nn


class _Nothing(ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


_Modes = enum.Enum(
    "InterpolationMode", ["NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS"]
)


def _modules() -> dict[str, ModuleType]:
    names = ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".utils")
    made: dict[str, ModuleType] = {f"torchvision{name}": _Nothing(f"torchvision{name}") for name in names}
    for name, module in made.items():
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    made["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    made["torchvision.transforms.functional"].InterpolationMode = _Modes
    return made


@contextmanager
def torchvision_stand_in() -> Generator[None]:
    """Let `import timm` work where torchvision is not installed; afterwards it is as absent as before."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    modules = _modules()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
