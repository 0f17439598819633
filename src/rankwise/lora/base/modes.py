"""Train and eval mode of modules, put back as they were."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_restored(modules: Iterable[nn.Module]) -> Generator[None]:
    """After this block each of these modules has the mode that it had before."""
    modes = {module: module.training for module in modules}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def in_eval(model: nn.Module) -> Generator[None]:
    """Inside this block a model is in eval mode; afterwards each module has the mode that it had."""
    with modes_restored(model.modules()):
        model.eval()
        yield
