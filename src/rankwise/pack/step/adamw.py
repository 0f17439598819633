r"""AdamW over a pack: elementwise over the vector of all parameters, with each adapter's own learning rate.

$$\theta \leftarrow (1 - \eta_k \lambda_k)\,\theta - \eta_k\,\hat m / (\sqrt{\hat v} + \epsilon)$$

Torch's fused kernel takes one learning rate for all. Where adapters differ it runs either once for each rate, on the
stretches of the vectors that have it, or, as many short stretches take longer than their numbers, on a buffer U in
place of the parameters, with learning rate 1 and weight decay 1: decay empties the buffer, what is left in it is
exactly -m/(sqrt(v) + eps), and each adapter takes it with its own rate.

References:
    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch
from torch import Tensor

from rankwise.pack.optimisers import AdamW
from rankwise.pack.step.optimiser import ExpandedValues, PackedOptimiser

CACHED_NUMBERS = 1 << 20
"""Numbers of a pack up to which U is kept for the next step. A small pack would spend much of its step on making it
anew; a large one spends nothing, and kept it would lie next to the activations."""

LONG, MANY = 1 << 13, 1 << 21
"""Numbers of a tensor, on average, and of a pack, from which on the kernel runs once for each rate: measured on a CPU,
where U and the rates of so many numbers are memory that the system has to give and zero in every step."""


@dataclass(frozen=True)
class Span:
    """Where one adapter's tensor lies in the vectors.

    Args:
        start, stop: Its numbers.
        adapter: The adapter's place in the pack.
        name: Its member's name, and the tensor's key.
        times: The multiple of the adapter's learning rate that it trains at.
        settings: Betas and eps.
    """

    start: int
    stop: int
    adapter: int
    name: tuple[str, str]
    times: float
    settings: tuple[float, float, float]


Stretches = dict[tuple[float, ...], list[slice]]
"""Stretches of the vectors by what they have in common."""


@final
class PackedAdamW(PackedOptimiser):
    """Adam with decoupled weight decay."""

    settings = AdamW
    names = ("first", "second")

    def prepare(self) -> None:
        # U is in no checkpoint: decay empties it in the next step, so a new one of zeros gives the same.
        self._update: Tensor | None = None
        self._rates = ExpandedValues(self.store, rates=True)
        self._spans = sorted(self._spans_of_pack(), key=lambda span: span.start)
        self._one_rate = all(span.times == 1 for span in self._spans)
        self._long = self.store.theta.numel() >= max(MANY, LONG * len(self._spans))
        self._alike: tuple[dict[tuple[str, str], int], Stretches] | None = None

    def _spans_of_pack(self) -> Iterable[Span]:
        first = 0
        for bucket in self.store.buckets:
            # Adapters of a bucket share betas and eps.
            own = self.settings_of(bucket, AdamW)[0]
            for key in bucket.shapes:
                start, n = bucket.place_of(key)
                for k, one in enumerate(bucket.members):
                    name, times = (one.member.name, key), bucket.rate_of(key, k)
                    yield Span(start + k * n, start + (k + 1) * n, first + k, name, times, (*own.betas, own.eps))
            first += len(bucket)

    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        theta = self.store.theta
        rates = lr.tolist()
        decays = [0.0] * len(rates) if weight_decay is None else weight_decay.tolist()
        if len(set(rates)) == len(set(decays)) == 1 and self._one_rate:
            self.steps += 1
            self._run_kernel(theta, self._stretches_alike(), rates[0], decays[0])
            return
        if self._long:
            self.steps += 1
            for (rate, decay, *alike), stretches in self._by_rate(rates, decays).items():
                self._run_kernel(theta, {tuple(alike): stretches}, rate, decay)
            return
        # All memory first: where it runs out, nothing has changed yet.
        if self._update is None:
            self._update = torch.zeros_like(theta)
        expanded = self._rates(lr)
        self.steps += 1
        self._run_kernel(self._update, self._stretches_alike(), 1.0, 1.0)
        if weight_decay is not None:
            self.store.decay(expanded, weight_decay)
        theta.addcmul_(self._update, expanded)
        if theta.numel() > CACHED_NUMBERS:
            self._update = None

    def _run_kernel(self, target: Tensor, stretches: Stretches, lr: float, weight_decay: float) -> None:
        vectors = target, self.store.grads, *self.vectors
        for (beta1, beta2, eps, missed), own in stretches.items():
            params, grads, first, second = ([vector[one] for one in own] for vector in vectors)
            # A tensor whose first step is missed has none yet, and nothing moves.
            steps = torch.clamp(self.steps - missed, min=1) if missed else self.steps
            # The kernel itself: torch.optim's function around it sorts tensors by device and type at every step.
            torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                params,
                grads,
                first,
                second,
                [],
                [steps] * len(params),
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                weight_decay=weight_decay,
                eps=eps,
                amsgrad=False,
                maximize=False,
            )

    def _stretches_alike(self) -> Stretches:
        """The stretches with the same settings, and as many steps."""
        if self._alike is None or self._alike[0] != self.missed:
            self._alike = {**self.missed}, self._stretches([self._settings(span) for span in self._spans])
        return self._alike[1]

    def _by_rate(self, rates: Sequence[float], decays: Sequence[float]) -> Stretches:
        """The stretches with the same learning rate and weight decay as well, which come first."""
        return self._stretches(
            [(rates[span.adapter] * span.times, decays[span.adapter], *self._settings(span)) for span in self._spans]
        )

    def _settings(self, span: Span) -> tuple[float, ...]:
        return *span.settings, self.missed.get(span.name, 0)

    def _stretches(self, kinds: Sequence[tuple[float, ...]]) -> Stretches:
        found: Stretches = {}
        for kind, pairs in groupby(zip(kinds, self._spans, strict=True), key=lambda pair: pair[0]):
            own = [span for _, span in pairs]
            found.setdefault(kind, []).append(slice(own[0].start, own[-1].stop))
        return found
