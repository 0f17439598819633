r"""AdamW over a pack: elementwise over the vector of all parameters, with each adapter's own learning rate.

$$\theta \leftarrow (1 - \eta_k \lambda_k)\,\theta - \eta_k\,\hat m / (\sqrt{\hat v} + \epsilon)$$

Torch's fused kernel takes one learning rate for all. Where adapters differ it runs on a buffer U in place of the
parameters, with learning rate 1 and weight decay 1: decay empties the buffer, what is left in it is exactly
-m/(sqrt(v) + eps), and each adapter takes it with its own rate.

References:
    Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rankwise.pack.resolved import State
from rankwise.pack.store import Store


class PackedAdamW:
    """The optimiser of a pack.

    Args:
        store: The pack's numbers; its `grads` hold the gradients when `step` is called.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.first, self.second = torch.zeros_like(store.theta), torch.zeros_like(store.theta)
        """The first and the second moment, laid out as the parameters."""
        self.steps = torch.zeros((), device=store.theta.device)
        self._prepare()

    def _prepare(self) -> None:
        self._update: Tensor | None = None
        self._rates: tuple[Tensor, Tensor] | None = None
        # Adapters of a bucket share betas and eps. Where all buckets do, the kernel runs on the whole vectors.
        self._groups: dict[tuple[float, float, float], list[tuple[int, str]]] = {}
        for i, bucket in enumerate(self._store.buckets):
            member = bucket.members[0].member
            self._groups.setdefault((*member.betas, member.eps), []).extend((i, key) for key in bucket.shapes)

    @torch.no_grad()
    def step(self, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move every adapter one step.

        Args:
            lr: Learning rate of each adapter, in the order of the pack.
            weight_decay: Each adapter's, or None when all are zero.
        """
        theta = self._store.theta
        rate = lr.tolist()
        decay = [0.0] * len(rate) if weight_decay is None else weight_decay.tolist()
        if len(set(rate)) == len(set(decay)) == 1 and not self._store.has_whole_rates:
            self.steps += 1
            self._run_kernel(theta, rate[0], decay[0])
            return
        # All memory first: where it runs out, nothing has changed yet.
        if self._update is None:
            self._update = torch.zeros_like(theta)
        if self._rates is None or not torch.equal(self._rates[0], lr):
            self._rates = lr.clone(), self._store.rates(lr)
        self.steps += 1
        self._run_kernel(self._update, 1.0, 1.0)
        if weight_decay is not None:
            self._store.multiply(theta, 1 - lr * weight_decay)
        theta.addcmul_(self._update, self._rates[1])

    def _run_kernel(self, target: Tensor, lr: float, weight_decay: float) -> None:
        vectors = target, self._store.grads, self.first, self.second
        for (beta1, beta2, eps), keys in self._groups.items():
            whole = len(self._groups) == 1
            params, grads, first, second = [[v] if whole else self._views(v, keys) for v in vectors]
            # The kernel itself: torch.optim's function around it sorts tensors by device and type at every step.
            torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                params,
                grads,
                first,
                second,
                [],
                [self.steps] * len(params),
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                weight_decay=weight_decay,
                eps=eps,
                amsgrad=False,
                maximize=False,
            )

    def _views(self, vector: Tensor, keys: Sequence[tuple[int, str]]) -> list[Tensor]:
        return [self._store.buckets[i].flat(vector, key) for i, key in keys]

    def state(self) -> dict[str, State]:
        """Each adapter's moments by its name: "first/<tensor>" and "second/<tensor>", cut to its rank.

        U is not among them: decay empties it in the next step. Nor is the step count, which all adapters share.
        """
        first, second = self._store.read(self.first), self._store.read(self.second)
        return {
            name: {
                **{f"first/{key}": value for key, value in state.items()},
                **{f"second/{key}": value for key, value in second[name].items()},
            }
            for name, state in first.items()
        }

    def load_state(self, states: Mapping[str, State], steps: int) -> None:
        """Take in what `state` gave, after so many steps, wherever in this pack the adapters lie."""
        self.steps.fill_(steps)
        for which, vector in (("first/", self.first), ("second/", self.second)):
            own = {
                name: {key.removeprefix(which): value for key, value in state.items() if key.startswith(which)}
                for name, state in states.items()
            }
            self._store.write(vector, own)

    def moved(self, first: Tensor, second: Tensor) -> None:
        """Take over the moments after adapters were cut out of the store."""
        self.first, self.second = first, second
        self._prepare()


def clip_gradients(store: Store, max_norm: Tensor) -> None:
    """Scale down each adapter's gradient that is longer than its own limit, as `clip_grad_norm_` does alone.

    Args:
        store: The pack's numbers.
        max_norm: Each adapter's limit; infinity for none.
    """
    # 1e-6 as in torch.nn.utils.clip_grad_norm_.
    store.multiply(store.grads, (max_norm / (store.norms(store.grads) + 1e-6)).clamp(max=1.0))
