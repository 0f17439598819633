"""The initialisation of loralib and PEFT: A uniform, B zero."""

import math

from torch import Tensor


def kaiming(u: Tensor, d_out: int) -> tuple[Tensor, Tensor]:
    """A uniform in +-1/sqrt(d_in), B zero.

    `kaiming_uniform_(a=sqrt(5))` over a (r, d_in) matrix comes to this bound: sqrt(6 / (1 + 5) / d_in).

    References:
        He et al., Delving Deep into Rectifiers, 2015, section 2.2. https://arxiv.org/abs/1502.01852
    """
    r, d_in = u.shape
    return (2 * u - 1) / math.sqrt(d_in), u.new_zeros(d_out, r)
