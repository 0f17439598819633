"""The initialisation of the digits experiment as published: A uniform with a bound that depends on r."""

import math

from torch import Tensor


def notebook(u: Tensor, d_out: int) -> tuple[Tensor, Tensor]:
    """A uniform in +-1/sqrt(r), B zero.

    The notebook keeps A as (d_in, r) and calls `kaiming_uniform_(a=sqrt(5))`, which takes the second
    dimension for the number of inputs: the bound becomes 1/sqrt(r), not 1/sqrt(d_in).
    """
    r = u.shape[0]
    return (2 * u - 1) / math.sqrt(r), u.new_zeros(d_out, r)
