"""The modules that PEFT matches with a file's `modules_to_save`, beyond those it names."""

import warnings
from collections.abc import Collection

from torch import Tensor, nn

from rankwise.lora.base.values import base_values
from rankwise.lora.targets.modules import walk
from rankwise.lora.trained_modules import is_inside


def also_meant(model: nn.Module, saved: Collection[str], adapted: Collection[str]) -> dict[str, Tensor]:
    """Return the base's own parameters and buffers that PEFT looks for in a file, though they aren't trained.

    PEFT wraps every module whose path ends in an entry, without a dot before it: `classifier` means DistilBERT's
    `pre_classifier` too, and PEFT can't load a file without it.

    Args:
        model: The model.
        saved: Paths of the modules that the adapter trains in full.
        adapted: Paths of its adapted layers; PEFT wraps none of them twice.
    """
    meant = (
        [path for path, _ in walk(model) if path.endswith(tuple(saved)) and not is_inside(path, saved)] if saved else []
    )
    if both := next((path for path in adapted if is_inside(path, meant)), None):
        entry = next(entry for entry in saved if any(path.endswith(entry) for path in meant if is_inside(both, [path])))
        warnings.warn(
            f'PEFT can\'t load the file: it takes modules_to_save "{entry}" for "{both}" too, which has A and B.',
            stacklevel=4,
        )
        return {}
    values = base_values(model) if meant else {}
    return {
        path: tensor
        for path, tensor in values.items()
        if tensor is not None and is_inside(path.rpartition(".")[0], meant)
    }
