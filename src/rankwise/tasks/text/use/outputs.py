"""The outputs of a base and its adapters on a data set."""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.tasks.text.encode.batches import trim
from rankwise.tasks.text.use.served import ServedModel

TOKENS_AT_ONCE = 1 << 13

NUMBERS_AT_ONCE = 1 << 26
"""Logits that a pass may give where all are made: 256 MiB in float32."""


def classifier_outputs(adapted: ServedModel, name: str, data: Mapping[str, Tensor]) -> Float[Tensor, "rows C"]:
    """The logits of a classifier on a data set, in the order of its rows, in float32 on the CPU.

    Args:
        adapted: The model.
        name: Which adapter acts.
        data: From `tokenize_texts`.
    """
    parts = list(outputs_of(adapted, name, data, adapted.loaded.call, 1))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return torch.cat([outputs.float() for _, outputs in parts])[order]


def outputs_of(
    adapted: ServedModel,
    name: str,
    data: Mapping[str, Tensor],
    call: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    numbers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the model over a data set, alike lengths together: places of the rows, and their outputs, on the CPU.

    Args:
        adapted: The model.
        name: Which adapter acts.
        data: The data set.
        call: (model, batch) -> outputs.
        numbers: That it makes for each token.
    """
    model = adapted.loaded.model
    device = next(model.parameters()).device
    lengths = data["attention_mask"].sum(-1)
    order = lengths.argsort(stable=True)
    width = data["input_ids"].shape[1]
    at_once = max(1, min(TOKENS_AT_ONCE, NUMBERS_AT_ONCE // numbers) // width)
    with adapted.acting(name):
        for rows in order.split(at_once):
            batch = trim({key: value[rows].to(device) for key, value in data.items()})
            # Not around the whole: a generator would leave gradients off between its values.
            with torch.no_grad():
                outputs = call(model, batch)
            yield rows, outputs.cpu()
