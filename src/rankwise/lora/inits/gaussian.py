"""The paper's initialisation: A normal, B zero."""

import math

import torch
from torch import Tensor


def gaussian(u: Tensor, d_out: int) -> tuple[Tensor, Tensor]:
    """A normal with standard deviation 1/r (as PEFT sets it; the paper leaves it open), B zero.

    The normal numbers are the inverse distribution function of the uniform ones, so that a row depends on
    its own uniform numbers only.

    References:
        Hu et al., LoRA, 2021, section 4.1 ("random Gaussian initialization for A and zero for B").
    """
    r = u.shape[0]
    return as_normal(u) / r, u.new_zeros(d_out, r)


def as_normal(u: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones, each from its own."""
    # u can be 0, whose normal number is -inf; half a step of the float32 grid keeps it finite.
    return math.sqrt(2) * torch.erfinv(2 * u.clamp_min(2**-25) - 1)
