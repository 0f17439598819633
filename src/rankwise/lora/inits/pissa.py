r"""PiSSA: A and B start as the weight's principal part, which the base gives up.

$$W = U S V^T, \qquad s\,B_0 A_0 = U_r S_r V_r^T, \qquad
A_0 = \sqrt{S_r / s}\; V_r^T, \quad B_0 = U_r \sqrt{S_r / s}$$

References:
    Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models, 2024,
    equations 2 to 4. https://arxiv.org/abs/2404.02948
"""

from torch import Tensor

from rankwise.lora.inits.init import InitSite, filled_up


def pissa(site: InitSite) -> tuple[Tensor, Tensor]:
    """A and B whose product, times s, is the best approximation of W of rank r."""
    U, S, Vh = site.weight.svd(site.r)
    root = (S / site.scale).sqrt()
    return filled_up(root.unsqueeze(1) * Vh, U * root, site)
