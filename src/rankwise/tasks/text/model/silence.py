"""transformers without its bars and reports, while it loads or saves."""

import logging as standard_logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def silence_transformers(*, gguf: bool = False) -> Generator[None]:
    """Silence transformers' progress bars and load reports; errors and notes report what matters in them.

    Args:
        gguf: Whether a GGUF file is unpacked, which has its own bar.
    """
    from transformers.utils import logging

    unpacking: Any = import_module("transformers.modeling_gguf_pytorch_utils") if gguf else None
    # transformers' switch for its bars does not reach this one.
    bar = getattr(unpacking, "tqdm", None)
    if bar is not None:
        unpacking.tqdm = lambda tensors, **_: tensors
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # torchao, where it is installed, tells at length which of its GPU kernels a machine without a GPU lacks.
    noisy = {name: standard_logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")}
    levels = {name: logger.level for name, logger in noisy.items()}
    for logger in noisy.values():
        logger.setLevel(standard_logging.ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bar is not None:
            unpacking.tqdm = bar
        logging.set_verbosity(level)
        for name, logger in noisy.items():
            logger.setLevel(levels[name])
        if bars:
            logging.enable_progress_bar()
