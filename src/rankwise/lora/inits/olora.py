r"""OLoRA: A and B start as the first part of a QR decomposition of the weight, which the base gives up.

$$W = Q R, \qquad B_0 = Q_{:, 1 \dots r}, \quad A_0 = R_{1 \dots r, :}$$

B_0 has orthonormal columns. As the paper and PEFT have it, s has no part in A_0 and B_0: the base gives up
s B_0 A_0.

References:
    Büyükakyüz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, 2024, algorithm 1.
    https://arxiv.org/abs/2406.01775
"""

from torch import Tensor

from rankwise.lora.inits.init import InitSite, filled_up


def olora(site: InitSite) -> tuple[Tensor, Tensor]:
    """A and B of the weight's QR decomposition."""
    Q, R = site.weight.qr(site.r)
    return filled_up(R, Q, site)
