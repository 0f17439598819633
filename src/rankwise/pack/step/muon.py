r"""Muon over a pack: each matrix moves by its momentum with all singular values made alike, vectors as in AdamW.

$$v \leftarrow \mu v + (1 - \mu)\,g, \qquad u = (1 - \mu)\,g + \mu\,v, \qquad
\theta \leftarrow (1 - \eta_k \lambda_k)\,\theta - 0.2 \sqrt{\max(n, m)}\;\eta_k\,\mathrm{NS}(u)$$

NS is five steps of a Newton-Schulz iteration, $X \leftarrow a X + (b X X^T + c (X X^T)^2) X$ from
$X = u / \lVert u \rVert$, which takes every singular value near 1. A and B of each adapter are matrices n x m of their
own rank: rows of zeros, with which a pack pads them, stay zeros in it and change no other number. The factor gives an
update the size that AdamW's has, so learning rates found for AdamW serve here too.

What is no matrix (biases, magnitudes, kernels of convolutions trained in full) takes AdamW's step at the same rate.

References:
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    https://kellerjordan.github.io/posts/muon/
    Liu et al., Muon is Scalable for LLM Training, 2025, equation 4 (the factor). https://arxiv.org/abs/2502.16982
    As in `torch.optim.Muon(momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")`, whose iteration runs in
    bfloat16; here it runs in the type of the numbers.
"""

from typing import final

import torch
from torch import Tensor

from rankwise.pack.optimisers import Muon
from rankwise.pack.step.optimiser import PackedOptimiser

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c: Jordan et al. chose them for a steep slope at 0."""
STEPS = 5
EPS = 1e-7


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with every singular value near 1, between 0.7 and 1.2, where it was not tiny.

    Args:
        matrices: (..., n, m).

    Examples:
        >>> orthogonalised(torch.diag(torch.tensor([3.0, 2.0]))).diagonal().gt(0.6).all()
        tensor(True)
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@final
class PackedMuon(PackedOptimiser):
    """Muon for matrices, AdamW for the rest."""

    settings = Muon
    names = ("first", "second")

    def prepare(self) -> None:
        self._places = [(i, bucket, key) for i, bucket in enumerate(self.store.buckets) for key in bucket.shapes]

    @torch.no_grad()
    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        theta = self.store.theta
        first, second = (vector.clone() for vector in self.vectors)
        rates = self.store.rates(lr.to(theta))
        update = torch.empty_like(theta)
        for i, bucket, key in self._places:
            grad, moment = (bucket.matrices(vector, key) for vector in (self.store.grads, first))
            if grad is None or moment is None:
                self._adam(i, key, first, second, update)
                continue
            moment.lerp_(grad, 1 - MOMENTUM)
            sizes = theta.new_tensor([0.2 * max(own) ** 0.5 for own in bucket.own_sizes(key)]).view(-1, 1, 1, 1)
            target = bucket.matrices(update, key)
            if target is not None:
                target.copy_(orthogonalised(grad.lerp(moment, MOMENTUM)) * sizes)
        # All memory is taken by now.
        for vector, new in zip(self.vectors, (first, second), strict=True):
            vector.copy_(new)
        self.steps += 1
        if weight_decay is not None:
            self.store.decay(rates, weight_decay)
        theta.addcmul_(update, rates, value=-1)

    def _adam(self, i: int, key: str, first: Tensor, second: Tensor, update: Tensor) -> None:
        """The update of what is no matrix."""
        bucket = self.store.buckets[i]
        settings = self.settings_of(bucket, Muon)[0]
        (beta1, beta2), eps = settings.betas, settings.eps
        grad, m, v, target = (bucket.flat(vector, key) for vector in (self.store.grads, first, second, update))
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        missed = [self.missed.get((one.member.name, key), 0) for one in bucket.members]
        steps = (self.steps + 1 - grad.new_tensor(missed)).clamp(min=1).unsqueeze(1)
        corrected = v.sqrt() / (1 - beta2**steps).sqrt() + eps
        target.copy_(m / (1 - beta1**steps) / corrected)
