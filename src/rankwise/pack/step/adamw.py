r"""AdamW over a pack: elementwise over the vector of all parameters, with each adapter's own learning rate.

$$\theta \leftarrow (1 - \eta_k \lambda_k)\,\theta - \eta_k\,\hat m / (\sqrt{\hat v} + \epsilon)$$

Torch's fused kernel takes one learning rate for all. Where adapters differ it runs on a buffer U in place of the
parameters, with learning rate 1 and weight decay 1: decay empties the buffer, what is left in it is exactly
-m/(sqrt(v) + eps), and each adapter takes it with its own rate.

References:
    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from rankwise.pack.optimisers import AdamW
from rankwise.pack.step.optimiser import ExpandedValues, PackedOptimiser

CACHED_NUMBERS = 1 << 20
"""Numbers of a pack up to which U is kept for the next step. A small pack would spend much of its step on making it
anew; a large one spends nothing, and kept it would lie next to the activations."""


@final
class PackedAdamW(PackedOptimiser):
    """Adam with decoupled weight decay."""

    settings = AdamW
    names = ("first", "second")

    def prepare(self) -> None:
        # U is in no checkpoint: decay empties it in the next step, so a new one of zeros gives the same.
        self._update: Tensor | None = None
        self._rates = ExpandedValues(self.store, rates=True)
        self._one_rate = not self.store.has_lr_multipliers
        # Adapters of a bucket share betas and eps. Where all buckets do, the kernel runs on the whole vectors.
        self._groups: dict[tuple[float, float, float], list[tuple[int, str]]] = {}
        for i, bucket in enumerate(self.store.buckets):
            settings = self.settings_of(bucket, AdamW)[0]
            self._groups.setdefault((*settings.betas, settings.eps), []).extend((i, key) for key in bucket.shapes)

    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        theta = self.store.theta
        rate = lr.tolist()
        decay = [0.0] * len(rate) if weight_decay is None else weight_decay.tolist()
        if len(set(rate)) == len(set(decay)) == 1 and self._one_rate:
            self.steps += 1
            self._run_kernel(theta, rate[0], decay[0])
            return
        # All memory first: where it runs out, nothing has changed yet.
        if self._update is None:
            self._update = torch.zeros_like(theta)
        rates = self._rates(lr)
        self.steps += 1
        self._run_kernel(self._update, 1.0, 1.0)
        if weight_decay is not None:
            self.store.multiply(theta, 1 - lr * weight_decay)
        theta.addcmul_(self._update, rates)
        if theta.numel() > CACHED_NUMBERS:
            self._update = None

    def _run_kernel(self, target: Tensor, lr: float, weight_decay: float) -> None:
        vectors = target, self.store.grads, *self.vectors
        for (beta1, beta2, eps), keys in self._groups.items():
            at_once = len(self._groups) == 1 and not self.missed
            params, grads, first, second = [[v] if at_once else self._views(v, keys) for v in vectors]
            # The kernel itself: torch.optim's function around it sorts tensors by device and type at every step.
            torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                params,
                grads,
                first,
                second,
                [],
                [self.steps] * len(params)
                if not self.missed
                else [self._steps_of(*place) for place in self._rows(keys)],
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                weight_decay=weight_decay,
                eps=eps,
                amsgrad=False,
                maximize=False,
            )

    def _views(self, vector: Tensor, keys: Sequence[tuple[int, str]]) -> list[Tensor]:
        if self.missed:
            return [self.store.buckets[i].flat(vector, key)[k] for i, key, k in self._rows(keys)]
        return [self.store.buckets[i].flat(vector, key) for i, key in keys]

    def _rows(self, keys: Sequence[tuple[int, str]]) -> list[tuple[int, str, int]]:
        """The places of single adapters' tensors: once one has missed a step, each has its own count of steps."""
        return [(i, key, k) for i, key in keys for k in range(len(self.store.buckets[i]))]

    def _steps_of(self, i: int, key: str, k: int) -> Tensor:
        missed = self.missed.get((self.store.buckets[i].members[k].member.name, key), 0)
        return torch.clamp(self.steps - missed, min=1)  # 0 where the first step is missed, and nothing moves
