"""Which layers a run adapts: all linear ones as `target_modules="all-linear"` finds them, or also convolutions and
embeddings.
"""

import re
from collections import Counter

from torch import nn

from rankwise.lora.layer_types import obstacle

KINDS = ("linear", "all")
_NAMED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding,
)  # fmt: skip
_LINEAR_NAMES = ("Linear", "Conv1D", "MultiheadAttention")


def _is_linear(module: nn.Module) -> bool:
    return any(ancestor.__name__ in _LINEAR_NAMES for ancestor in type(module).__mro__)


def select(model: nn.Module, kinds: str) -> tuple[list[str], dict[str, int]]:
    """Return `target_modules` for these kinds, and why layers of the kind can't be adapted (reason -> number)."""
    reasons: Counter[str] = Counter()
    targets: list[str] = []
    linear = False
    for name, module in model.named_modules():
        named = kinds == "all" and isinstance(module, _NAMED)
        if not (named or _is_linear(module)):
            continue
        # An attention is no layer of the table: it is adapted through its matrices.
        why = "" if isinstance(module, nn.MultiheadAttention) else obstacle(module)
        if why:
            reasons[f"{type(module).__name__}: {why}"] += 1
        elif named:
            targets.append(re.escape(name))
        else:
            linear = True
    # A regular expression, because a plain name means every path that ends in it.
    return ["all-linear"] * linear + ["re:" + "|".join(targets)] * bool(targets), dict(reasons)
