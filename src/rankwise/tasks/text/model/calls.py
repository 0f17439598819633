"""Run a language model on a batch of a pack: select the parts of the batch that it takes, and return logits."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ModelCall:
    """(model, batch) -> logits, for `Pack(call=...)`.

    Args:
        inputs: The parts of a batch that the model takes.
        keeps_cache: Whether the model would make a cache, which training has no use for and which would let joined
            examples see each other.
    """

    inputs: frozenset[str]
    keeps_cache: bool

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Run the model on what it takes of the batch."""
        given: dict[str, Any] = {key: batch[key] for key in batch if key != "labels" and key in self.inputs}
        if self.keeps_cache:
            given["use_cache"] = False
        outputs = model(**given)
        return outputs if isinstance(outputs, Tensor) else outputs.logits


def find_inputs(model: nn.Module) -> ModelCall:
    """Find out from the signature of a model (or of its encoder) how to run it.

    Examples:
        >>> class Model(nn.Module):
        ...     def forward(self, input_ids, attention_mask=None, use_cache=None): ...
        >>> find_inputs(Model()).keeps_cache
        True
    """
    known = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    # transformers' newer models take `use_cache` among keywords that they hand on.
    return ModelCall(frozenset(known), "use_cache" in known or (takes_any and hasattr(model, "generate")))
