"""torch's fusions of a normalisation into the layer before it: they copy the layer, and write another weight into that.

An adapter that goes along would act without the normalisation's scale, and nothing shows it later.
"""

import sys
from typing import Any

from torch.nn.utils import fusion

from rankwise.errors import AdapterError

_FUSIONS = {fusion.fuse_conv_bn_eval.__code__, fusion.fuse_linear_bn_eval.__code__}


def is_being_fused() -> bool:
    """Tell whether one of the functions that have called this is such a fusion."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code not in _FUSIONS:
        frame = frame.f_back
    return frame is not None


def without_base(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a fused layer's adapter: merged for good, since the base's weight isn't the fused one.

    Raises:
        AdapterError: It isn't merged.
    """
    if state["scale"] and not state.get("merged"):
        raise AdapterError(
            "torch fuses a normalisation into the weight of an adapted layer, and the adapter would act without its "
            "scale. Call merge first."
        )
    return {**state, "base_weight": None}
