r"""SGD over a pack: elementwise over the vector of all parameters, with each adapter's own settings.

$$g \leftarrow g + \lambda_k\,\theta, \quad v \leftarrow \mu_k v + g, \quad
\theta \leftarrow \theta - \eta_k\,v \;\text{ or, after Nesterov, }\; \theta - \eta_k\,(g + \mu_k v)$$

References:
    Sutskever et al., On the importance of initialization and momentum in deep learning, 2013, section 2; as in
    `torch.optim.SGD` without dampening.
"""

from typing import final

import torch
from torch import Tensor

from rankwise.pack.optimisers import SGD
from rankwise.pack.step.optimiser import ExpandedValues, PackedOptimiser


@final
class PackedSGD(PackedOptimiser):
    """Stochastic gradient descent with momentum. Weight decay is a gradient here, not decoupled as in AdamW."""

    settings = SGD
    names = ("velocity",)

    def prepare(self) -> None:
        settings = [own for bucket in self.store.buckets for own in self.settings_of(bucket, SGD)]
        theta = self.store.theta
        self._momentum = self._of_gradient = self._of_velocity = None
        if any(own.momentum for own in settings):
            self._momentum = self.store.spread(theta.new_tensor([own.momentum for own in settings]))
        if any(own.nesterov for own in settings):
            # theta moves by a g + b v: (1, mu) after Nesterov, else (0, 1).
            shares = [(1.0, own.momentum) if own.nesterov else (0.0, 1.0) for own in settings]
            self._of_gradient, self._of_velocity = (self.store.spread(v) for v in theta.new_tensor(shares).unbind(1))
        self._rates, self._decays = ExpandedValues(self.store, rates=True), ExpandedValues(self.store)

    @torch.no_grad()
    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        theta, grads, (velocity,) = self.store.theta, self.store.grads, self.vectors
        rates = self._rates(lr)
        if weight_decay is not None:
            grads = torch.addcmul(grads, theta, self._decays(weight_decay))
        moved = grads if self._momentum is None else torch.addcmul(grads, velocity, self._momentum)
        update = moved
        if self._of_gradient is not None and self._of_velocity is not None:
            update = torch.addcmul(moved * self._of_velocity, grads, self._of_gradient)
        # All memory is taken by now.
        if self._momentum is not None:
            velocity.copy_(moved)
        self.steps += 1
        theta.addcmul_(update, rates, value=-1)
