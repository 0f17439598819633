"""Short examples joined into full rows, without attention from one to another.

Positions begin at 0 with each example and no attention mask is given: from the restarts transformers makes a
block-diagonal causal mask of the model's own kind (eager, sdpa, sliding windows). It does so only while no cache is
made, so `use_cache=False` must be passed: `call_text_model` does.

References:
    transformers, `masking_utils.find_packed_sequence_indices`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError
from rankwise.tasks.text.encode.batches import fill_up
from rankwise.tasks.text.encode.tokens import IGNORED, Prepared


@dataclass(frozen=True)
class Joined:
    """Examples in full rows.

    Args:
        data: input_ids, position_ids, labels; every tensor (rows, width).
        members: For each row the numbers of its examples, in their order.
        note: How full the rows are.
    """

    data: dict[str, Tensor]
    members: tuple[tuple[int, ...], ...]
    note: str


def join(prepared: Prepared, width: int) -> Joined:
    """Pack examples into rows of `width` tokens: longest first, each into the fullest row with room.

    Args:
        prepared: Examples for a causal model.
        width: Tokens of a row; at least the longest example's.

    Raises:
        ConfigError: The examples are for an encoder-decoder, or one is longer than a row.

    Examples:
        >>> from rankwise.tasks.text.encode.tokens import Tokens
        >>> rows = tuple(Tokens(i, [i] * n, [-100] + [i] * (n - 1)) for i, n in enumerate([2, 3, 1], start=1))
        >>> join(Prepared(rows, pad_id=0), width=4).data["position_ids"]
        tensor([[0, 1, 2, 0],
                [0, 1, 0, 1]])
    """
    if prepared.encoder_decoder:
        raise ConfigError("Examples of an encoder-decoder can't be joined; leave --join out.")
    lengths = [len(row.ids) for row in prepared.rows]
    if max(lengths) > width:
        raise ConfigError(f"Rows of {width:,} tokens are too short: the longest example has {max(lengths):,}.")
    members = fit(lengths, width)
    parts = [[prepared.rows[i] for i in row] for row in members]
    # The rest of a row is one more run of positions, which no example looks at.
    gaps = [width - sum(len(part.ids) for part in row) for row in parts]
    filled = list(zip(parts, gaps, strict=True))
    data = {
        "input_ids": [[*(t for p in row for t in p.ids), *[prepared.pad_id] * gap] for row, gap in filled],
        "position_ids": [[*(t for p in row for t in range(len(p.ids))), *range(gap)] for row, gap in filled],
        "labels": [[*(t for p in row for t in p.labels), *[IGNORED] * gap] for row, gap in filled],
    }
    full = sum(lengths) / (len(members) * width)
    note = f"{len(lengths):,} examples are joined into {len(members):,} rows of {width:,} tokens, {full:.0%} full."
    return Joined({key: fill_up(rows, 0) for key, rows in data.items()}, members, note)


def fit(lengths: Sequence[int], width: int) -> tuple[tuple[int, ...], ...]:
    """Best fit, longest first: each length into the row with the least room that is enough.

    Examples:
        >>> fit([5, 4, 3, 2, 1], width=8)
        ((0, 2), (1, 3, 4))
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = next((r for r in range(lengths[i], width + 1) if with_room[r]), None)
        if room is None:
            row, room = len(rows), width
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(i)
        with_room[room - lengths[i]].append(row)
    return tuple(tuple(row) for row in rows)


MOST_ROUNDING = 0.1
"""Of the largest logit: the most that rounding may change. SmolLM2-135M changes by 0.002 in float16 and by 0 in
bfloat16 where examples are kept apart, and by 0.73 and more where they are not; 100 eps of bfloat16 is 0.78."""


@torch.no_grad()
def check_joining(model: nn.Module, vocabulary: int) -> None:
    """Check on one row that the model separates joined examples: not every architecture masks by positions.

    Args:
        model: A causal model of transformers.
        vocabulary: How many tokens it knows.

    Raises:
        ConfigError: Its outputs for joined examples differ from those of each alone.
    """
    first = next(model.parameters())
    ids = torch.arange(11, device=first.device).remainder(vocabulary).unsqueeze(0)
    parts = ids.split([5, 6], dim=1)
    positions = torch.cat([torch.arange(part.shape[1], device=first.device) for part in parts]).unsqueeze(0)
    training = model.training
    model.eval()
    try:
        joined = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], dim=1).float()
    finally:
        model.train(training)
    # Seeing the other example changes outputs by far more than rounding does.
    tolerance = min(100 * torch.finfo(first.dtype).eps, MOST_ROUNDING) * alone.abs().max()
    if (difference := (joined - alone).abs().max()) > tolerance:
        raise ConfigError(
            f"{type(model).__name__} does not keep joined examples apart (outputs differ by {difference:.1e}); "
            "leave --join out."
        )
