r"""Token losses without the logits of a whole batch: the head over the vocabulary sees only tokens with loss, in parts.

A batch's logits take rows x T x V numbers, and training keeps them, their gradient and their exponentials: for a
vocabulary of 50,000 that is more than all the rest. Of each part of the tokens only what the backward pass needs is
kept, the gradient of its loss by the hidden state:

$$\frac{\partial L_i}{\partial h_i} = W^T (p_i - e_{y_i})$$
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.tasks.text.calls import ModelCall
from rankwise.tasks.text.losses import targets_of, token_sums
from rankwise.tasks.text.tokens import IGNORED

LOGITS_AT_ONCE = 1 << 24
"""Numbers: 64 MiB in float32."""


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of tokens under a frozen head."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "n d"], weight: Float[Tensor, "V d"], bias: Tensor | None, targets: Tensor
    ) -> Float[Tensor, " n"]:
        losses = torch.empty(len(hidden), device=hidden.device, dtype=torch.promote_types(hidden.dtype, torch.float32))
        keep = hidden.requires_grad
        by_hidden = torch.empty_like(hidden) if keep else None
        chunk = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            # In float32 or wider, whatever the model computes in: a sum over a large vocabulary needs it.
            logits = F.linear(hidden[rows], weight, bias).to(losses.dtype)
            log_p = logits.log_softmax(-1)
            at = targets[rows].unsqueeze(-1)
            losses[rows] = -log_p.gather(-1, at).squeeze(-1)
            if by_hidden is not None:
                p = log_p.exp_()
                p.scatter_add_(-1, at, p.new_full(at.shape, -1.0))
                by_hidden[rows] = p.to(weight.dtype) @ weight
        if by_hidden is not None:
            ctx.save_for_backward(by_hidden)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (by_hidden,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1).to(by_hidden.dtype) * by_hidden, None, None, None


@dataclass(frozen=True)
class TokenLoss:
    """(model, batch) -> for each row the summed cross-entropy and the number of its tokens with loss: (rows, 2).

    Args:
        call: How the model is run.
        head: The head's name where the model's logits are its outputs and nothing else, as `lean_head` tells; else "".
    """

    call: ModelCall
    head: str

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows 2"]:
        """Run the model and its head on what they take of the batch."""
        head: Any = model.get_submodule(self.head) if self.head else None
        # A head that is trained, by an adapter or whole, is run as the layer it is.
        if head is None or "forward" in vars(head) or (torch.is_grad_enabled() and head.weight.requires_grad):
            return torch.stack(token_sums(self.call(model, batch), batch), -1)
        hidden = _hidden(model, self.call, batch)
        targets = targets_of(batch)
        counted = (targets != IGNORED).flatten().nonzero().squeeze(-1)
        losses = _HeadLoss.apply(
            hidden.flatten(0, -2).index_select(0, counted), head.weight, head.bias, targets.flatten()[counted]
        )
        rows = counted // targets.shape[-1]
        sums = losses.new_zeros(len(targets)).index_add(0, rows, losses)
        return torch.stack([sums, (targets != IGNORED).sum(-1).to(sums.dtype)], -1)


def _hidden(model: nn.Module, call: ModelCall, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows T d"]:
    base: Any = getattr(model, str(model.base_model_prefix))
    given: dict[str, Any] = {key: batch[key] for key in batch if key != "labels" and key in call.inputs}
    if call.keeps_cache:
        given["use_cache"] = False
    return base(**given).last_hidden_state


def row_loss(outputs: Float[Tensor, "rows 2"], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of what `TokenLoss` gives: sums, and the tokens to divide them by."""
    return outputs[:, 0], outputs[:, 1]


@torch.no_grad()
def lean_head(model: Any, call: ModelCall, example: Mapping[str, Int[Tensor, "rows T"]]) -> str:
    """The name of the head whose outputs are the model's logits; "" where it scales or caps them.

    Args:
        model: A language model of transformers, in eval mode.
        call: How it is run.
        example: A batch of a row or more.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    base = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    if not isinstance(base, nn.Module) or base is model or type(head) is not nn.Linear:
        return ""
    if "decoder_input_ids" in example:  # the base of an encoder-decoder gives more than one state
        return ""
    if not torch.equal(head(_hidden(model, call, example)), call(model, example)):
        return ""
    return next(name for name, module in model.named_modules() if module is head)
