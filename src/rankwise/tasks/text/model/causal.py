"""Whether a model that is to write text reads only what stands before each token."""

import torch
from torch import nn

from rankwise.errors import ConfigError
from rankwise.tasks.text.model.calls import find_inputs

TOKENS = 8

MOST_ROUNDING = 0.1
"""The most by which outputs of equal tokens may differ between rows of a batch, as a share of the largest logit."""


@torch.no_grad()
def check_causal(model: nn.Module, vocabulary: int, name: str) -> None:
    """Check on two short rows that no output depends on later tokens: otherwise the loss would see the answers.

    transformers has classes called causal that are not (XLNet's, XLM's), or only with a setting (`is_decoder` of
    BERT's).

    Args:
        model: A model of transformers in eval mode.
        vocabulary: How many tokens it knows.
        name: What the user calls it.

    Raises:
        ConfigError: An output depends on a later token.
    """
    first = next(model.parameters())
    ids = torch.arange(TOKENS, device=first.device).remainder(vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before, after = find_inputs(model)(model, batch)[:, :-1].float()
    tolerance = min(100 * torch.finfo(first.dtype).eps, MOST_ROUNDING) * before.abs().max()
    if (difference := (before - after).abs().max()) > tolerance:
        raise ConfigError(
            f'"{name}" is a {type(model).__name__} whose outputs depend on later tokens (by {difference:.1e}), so it '
            "can't write text: in training it would read the answers. Take a causal model, or, for "
            'BERT and its kin, a checkpoint with "is_decoder": true in its config.json.'
        )
