"""Heads of classifiers: found in a model, put on an encoder, and begun from each adapter's seed.

A head belongs to each adapter: `Member.modules_to_save` names its modules, and its first weights depend on the seed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.errors import ConfigError
from rankwise.lora.inits.gaussian import as_normal
from rankwise.streams import stream
from rankwise.tasks.text.encode.tokens import text_config

HEAD_STD = 0.02
"""Standard deviation of a new head's weights where the model's configuration names none; BERT's, and most models'."""


class MeanPooledClassifier(nn.Module):
    """An encoder, the mean of its outputs over the tokens of a text, and a linear head.

    Args:
        encoder: An encoder of transformers; its own pooler, which would not be used, is taken off.
        n_outputs: How many labels there are, or 1 for numbers.

    Examples:
        >>> from types import SimpleNamespace
        >>> class Encoder(nn.Module):
        ...     config = SimpleNamespace(hidden_size=2)
        ...     def forward(self, input_ids, attention_mask):
        ...         return SimpleNamespace(last_hidden_state=torch.stack([input_ids, input_ids], -1).float())
        >>> model = MeanPooledClassifier(Encoder(), 3)
        >>> mean = model.pool(torch.tensor([[[1.0, 2.0], [9.0, 9.0]]]), torch.tensor([[1, 0]]))
        >>> mean
        tensor([[1., 2.]])
    """

    def __init__(self, encoder: nn.Module, n_outputs: int) -> None:
        super().__init__()
        if isinstance(getattr(encoder, "pooler", None), nn.Module):
            # An adapter on it would never be trained, and transformers' encoders go without it.
            encoder.register_module("pooler", None)
        self.encoder = encoder
        first = next(encoder.parameters(), torch.empty(0))
        config = text_config(encoder.config)
        self.head = nn.Linear(config.hidden_size, n_outputs, device=first.device, dtype=first.dtype)

    @staticmethod
    def pool(hidden: Float[Tensor, "rows T d"], mask: Int[Tensor, "rows T"]) -> Float[Tensor, "rows d"]:
        """Mean over the tokens that the mask shows."""
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Float[Tensor, "rows C"]:
        """Logits of each text."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        return self.head(self.pool(hidden, attention_mask))


def find_head(model: nn.Module, base_prefix: str, missing: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modules outside the base, or that its checkpoint has no weights for.

    Args:
        model: A classifier.
        base_prefix: Name of the base inside it.
        missing: Parameters that the checkpoint did not have.

    Returns:
        (names of all modules of the head, names of those that are new), each with its own parameters.

    Raises:
        ConfigError: The checkpoint lacks weights of the base itself.
    """
    own = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    new = {parameter.rpartition(".")[0] for parameter in missing}
    in_base = {name for name in own if f"{name}.".startswith(f"{base_prefix}.")}
    head = tuple(name for name in own if name in new or name not in in_base)
    # Many encoders are published without their pooler.
    lacking = [name for name in head if name in in_base and ".pooler" not in name]
    if lacking:
        raise ConfigError(
            f"The checkpoint has no weights for {len(lacking)} modules of the base ({lacking[0]}, ...); "
            "is it one of this model?"
        )
    return head, tuple(name for name in head if name in new)


def initial_head(model: nn.Module, head: Sequence[str], new: Sequence[str], seed: int) -> dict[str, Tensor]:
    """A head's tensors before training, by name: what an adapter's state begins with.

    Weight matrices of new modules are normal, from the stream of (seed, name); all else is as in the model.

    Args:
        model: The classifier.
        head: From `find_head`, as `Member.modules_to_save`.
        new: Those of them that the checkpoint has no weights for.
        seed: The adapter's.
    """
    config = text_config(getattr(model, "config", None))
    std = float(getattr(config, "initializer_range", None) or HEAD_STD)
    state: dict[str, Tensor] = {}
    for module in head:
        for name, parameter in model.get_submodule(module).named_parameters(recurse=False):
            key = f"{module}.{name}"
            value = parameter.detach().clone()
            if module in new and value.dim() > 1:
                u = torch.rand(value.shape, generator=stream("head", seed, key))
                value = (std * as_normal(u)).to(value)
            state[key] = value
    return state


def begin_at(model: nn.Module, new: Sequence[str], value: float) -> bool:
    """Initialise a new head of one output at a number: training then only learns the differences from it.

    Args:
        model: The classifier.
        new: The modules of its head that are new.
        value: What it is to give at first, but for the random weights.

    Returns:
        Whether it does; a head without a bias can't.
    """
    layers = [model.get_submodule(name) for name in new]
    last = next((layer for layer in reversed(layers) if isinstance(layer, nn.Linear) and layer.out_features == 1), None)
    if last is None or "bias" not in dict(last.named_parameters()):
        return False
    with torch.no_grad():
        last.bias.fill_(value)
    return True
