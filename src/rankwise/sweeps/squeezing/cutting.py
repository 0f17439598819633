r"""An adapter in memory cut to smaller ranks: each update $s B A$ replaced by its best approximation.

The singular values come from the thin factors (`rankwise.surgery.spectra`); $B A$ is never formed. The scale of the
smaller adapter is folded into A and B, so its settings are those of an adapter trained at that rank.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from rankwise.lora.layer_types.convolution import crosses_groups
from rankwise.lora.targets.target import Target
from rankwise.pack.member import Member
from rankwise.pack.resolved import AdapterState, resolve
from rankwise.surgery.spectra import Thin, balanced, thin_svd


def cut_state(
    model: nn.Module, trained: Member, state: AdapterState, smaller: Sequence[Member]
) -> list[AdapterState] | None:
    """Return the tensors of an adapter cut to each of several smaller ones.

    Args:
        model: The base.
        trained: What was trained, of plain LoRA.
        state: Its tensors.
        smaller: Adapters of the same modules, of ranks up to the trained one's; only their ranks and scales count.

    Returns:
        One state for each; what is trained in full is the trained adapter's. None where an update has no matrix: PEFT's
        adapters of grouped convolutions may read all channels.
    """
    parts: dict[str, Thin] = {}
    for t in resolve(model, trained).targets:
        if t.layer_type.tokens:
            continue
        if crosses_groups(t.module, state[f"{t.name}.A"]):
            return None
        A, B = _matrices(t, state)
        parts[t.name] = thin_svd(A, t.scale * B.double())
    found: list[AdapterState] = []
    for member in smaller:
        cut = dict(state)
        for t in resolve(model, member).targets:
            if t.name in parts:
                cut |= _filed(t, *balanced(*parts[t.name], t.r), state)
        found.append(cut)
    return found


def _matrices(t: Target, state: AdapterState) -> tuple[Tensor, Tensor]:
    """A (n, r, d_in) and B (n, d_out, r) of a stack of n matrices: experts, or slices of a fused projection."""
    A, B = state[f"{t.name}.A"], state[f"{t.name}.B"]
    return A.unflatten(0, (t.stack, -1)), B.unflatten(1, (t.stack, -1)).transpose(0, 1)


def _filed(t: Target, A: Tensor, B: Tensor, like: AdapterState) -> AdapterState:
    """A and B as a state has them, each divided by the root of the scale."""
    root = math.sqrt(abs(t.scale)) or 1.0
    pair = A / root, B / math.copysign(root, t.scale)
    flat = pair[0].flatten(0, 1), pair[1].transpose(0, 1).flatten(1)
    keys = f"{t.name}.A", f"{t.name}.B"
    return {key: tensor.to(like[key]).contiguous() for key, tensor in zip(keys, flat, strict=True)}
