r"""Token losses without the logits of a whole batch: the head over the vocabulary sees only tokens with loss, in parts.

A batch's logits take rows x T x V numbers, and training keeps them, their gradient and their exponentials: for a
vocabulary of 50,000 that is more than all the rest. Of each part of the tokens only what the backward pass needs is
kept, the gradient of its loss by the hidden state:

$$\frac{\partial L_i}{\partial h_i} = W^T (p_i - e_{y_i})$$

(times the derivative of what a model makes of its head's outputs: a scale, a cap).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.lora.checks.threads import has_hooks
from rankwise.pack.noise.forwards import replaced_forwards
from rankwise.tasks.text.encode.tokens import IGNORED, text_config
from rankwise.tasks.text.model.calls import ModelCall
from rankwise.tasks.text.score.losses import targets_of, token_sums

LOGITS_AT_ONCE = 1 << 24
"""Numbers: 64 MiB in float32."""


Finish = Callable[[Tensor], Tensor]
"""The function from a head's outputs to logits: identity, a scale, a cap."""


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of tokens under a frozen head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "V d"],
        bias: Tensor | None,
        targets: Tensor,
        finish: Finish,
    ) -> Float[Tensor, " n"]:
        losses = torch.empty(len(hidden), device=hidden.device, dtype=torch.promote_types(hidden.dtype, torch.float32))
        by_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        chunk = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            z = F.linear(hidden[rows], weight, bias)
            with torch.set_grad_enabled(hidden.requires_grad):
                logits = finish(z.requires_grad_(hidden.requires_grad))
            # In float32 or wider, whatever the model computes in: a sum over a large vocabulary needs it.
            log_p = logits.detach().to(losses.dtype).log_softmax(-1)
            at = targets[rows].unsqueeze(-1)
            losses[rows] = -log_p.gather(-1, at).squeeze(-1)
            if by_hidden is not None:
                p = log_p.exp_()
                p.scatter_add_(-1, at, p.new_full(at.shape, -1.0))
                by_logits = p.to(logits.dtype)
                by_z = by_logits if logits is z else torch.autograd.grad(logits, z, by_logits)[0]
                by_hidden[rows] = by_z @ weight
        if by_hidden is not None:
            ctx.save_for_backward(by_hidden)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (by_hidden,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1).to(by_hidden.dtype) * by_hidden, None, None, None, None


SEEN = 16
"""Tokens of a row on which a head is looked at."""


@dataclass(frozen=True)
class LeanHead:
    """A head whose outputs, finished, are a model's logits.

    Args:
        name: Its name in the model.
        finish: From its outputs to logits.
    """

    name: str
    finish: Finish


@dataclass(frozen=True)
class TokenLoss:
    """(model, batch) -> for each row the summed cross-entropy and the number of its tokens with loss: (rows, 2).

    Args:
        call: How the model is run.
        head: From `lean_head`; None where all logits have to be made.
    """

    call: ModelCall
    head: LeanHead | None

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows 2"]:
        """Run the model and its head on what they take of the batch."""
        head: Any = None if self.head is None else model.get_submodule(self.head.name)
        # A head that is trained, by an adapter or whole, is run as the layer it is.
        if self.head is None or _acted_on(head) or (torch.is_grad_enabled() and head.weight.requires_grad):
            return torch.stack(token_sums(self.call(model, batch), batch), -1)
        hidden, _ = _run_to(head, self.call, model, batch)
        targets = targets_of(batch)
        counted = (targets != IGNORED).flatten().nonzero().squeeze(-1)
        given = hidden.flatten(0, -2).index_select(0, counted)
        losses = _HeadLoss.apply(given, head.weight, head.bias, targets.flatten()[counted], self.head.finish)
        rows = counted // targets.shape[-1]
        sums = losses.new_zeros(len(targets)).index_add(0, rows, losses)
        return torch.stack([sums, (targets != IGNORED).sum(-1).to(sums.dtype)], -1)


def _acted_on(head: Any) -> bool:
    """Whether something replaces the head's own forward, or adds to it."""
    return "forward" in vars(head) or has_hooks(head)


def _run_to(
    head: nn.Module, call: ModelCall, model: nn.Module, batch: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "rows T d"], int]:
    """The head's input in a run of the model, and its number of calls; the head itself does not run."""
    given: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden.new_zeros(1, 1, 1)  # whatever comes after the head costs nothing

    with replaced_forwards({"head": head}, lambda name, forward: keep):
        call(model, batch)
    return given[0], len(given)


def row_loss(outputs: Float[Tensor, "rows 2"], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of what `TokenLoss` gives: sums, and the tokens to divide them by."""
    return outputs[:, 0], outputs[:, 1]


@torch.no_grad()
def lean_head(model: Any, call: ModelCall, example: Mapping[str, Int[Tensor, "rows T"]]) -> LeanHead | None:
    """The head whose outputs, finished in a way known here, are the model's logits; None where there is none.

    Args:
        model: A language model of transformers, in eval mode.
        call: How it is run.
        example: A batch of a row or more; its first tokens are enough.
    """
    # All logits are what is to be avoided.
    example = {key: value[:2, :SEEN] for key, value in example.items()}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if type(head) is not nn.Linear or _acted_on(head):
        return None
    try:
        hidden, times = _run_to(head, call, model, example)
    except (RuntimeError, ValueError, IndexError):  # what comes after the head needs all logits
        return None
    if times != 1:
        return None
    outputs, logits = head(hidden), call(model, example)
    name = next(name for name, module in model.named_modules() if module is head)
    return next(
        (LeanHead(name, finish) for finish in _finishes(text_config(model.config)) if _equal(finish(outputs), logits)),
        None,
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether they are the same to the last bit; some attentions give NaN at tokens that are there to fill up."""
    alike = (one.shape, one.dtype) == (other.shape, other.dtype) and bool(one.isfinite().any())
    return alike and one.allclose(other, rtol=0, atol=0, equal_nan=True)


def _finishes(config: Any) -> Iterator[Finish]:
    """The function from head outputs to logits in transformers models, by their configurations' settings."""
    yield lambda z: z
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        yield lambda z: torch.tanh(z / cap) * cap
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        yield lambda z: z / divisor
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if (factor := getattr(config, name, None)) is not None:
            yield lambda z, factor=factor: z * factor
