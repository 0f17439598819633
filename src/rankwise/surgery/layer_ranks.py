r"""A rank for each layer, as many parameters in all as a flat rank has: where a trained adapter's spectra ask for them.

The directions of all layers compete: one of layer m with singular value $\sigma$ keeps $\sigma^2$ of the update's
squared norm and costs $d_{in} + d_{out}$ numbers. The best are taken in turn until the parameters of the flat rank are
used up, at least one for each layer.
"""

import heapq
import os
from dataclasses import replace

from torch import Tensor

from rankwise.adapter_files.updates import StoredUpdate, read_updates
from rankwise.errors import ConfigError, option
from rankwise.lora.config import LoRAConfig
from rankwise.surgery.spectra import thin_svd


def ranks_by_layer(adapter: str | os.PathLike[str], r: int) -> LoRAConfig:
    """Return settings with a rank for each layer, for a sweep beside the flat rank.

    The scale of every layer is the one that the flat rank has with the adapter's alpha, so the two differ in nothing
    but where the ranks are.

    Args:
        adapter: Folder of a trained adapter of a larger rank, in PEFT's format.
        r: The flat rank whose number of parameters is not exceeded.

    Returns:
        The adapter's settings with r and a `rank_pattern`.

    Raises:
        ConfigError: The adapter's rank is not larger.
        AdapterFileError: The adapter is damaged, or not of plain LoRA.

    Examples:
        >>> import rankwise, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        >>> _ = rankwise.inject(model, rankwise.LoRAConfig(r=4))
        >>> with torch.no_grad():
        ...     _ = model[1].lora.tensors("default")["B"].copy_(torch.randn(8, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = rankwise.save_adapter(model, folder)
        ...     print(dict(rankwise.ranks_by_layer(folder, 2).rank_pattern))
        {'0': 1, '1': 3}
    """
    stored = read_updates(adapter)
    most = max(update.r for update in stored.updates.values())
    if not 1 <= r < most:
        raise ConfigError(
            f"{option('r')} is {r}, and {stored.folder} has rank {most}; its spectra tell of smaller ranks. Give one "
            f"from 1 to {most - 1}."
        )
    config = replace(LoRAConfig.from_peft(stored.folder), r=r)
    ranks = _taken(stored.updates, r)
    scale = config.scale()
    alphas = {path: scale * rank for path, rank in ranks.items()}
    if config.scaling != "alpha/r":
        alphas = {path: scale * rank**0.5 for path, rank in ranks.items()}
    return replace(config, rank_pattern=ranks, alpha_pattern=alphas, seed=0)


def _taken(updates: dict[str, StoredUpdate], r: int) -> dict[str, int]:
    """Name of a weight -> its rank. Weights that PEFT calls by one name have one."""
    gains: dict[str, Tensor] = {}
    costs: dict[str, int] = {}
    for update in updates.values():
        squares = (update.scale * thin_svd(update.pair.A, update.pair.B)[1]).square().sum(0)
        cost = update.pair.A.shape[0] * (update.pair.A.shape[2] + update.pair.B.shape[1]) * update.pair.growth
        for name in update.names:
            known = gains.get(name)
            gains[name] = squares if known is None else known[: len(squares)] + squares[: len(known)]
            costs[name] = costs.get(name, 0) + cost
    left = r * sum(costs.values()) - sum(costs.values())
    ranks = dict.fromkeys(gains, 1)
    waiting = [(-float(gains[name][1]) / costs[name], name) for name in gains if len(gains[name]) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        if costs[name] > left:
            continue
        left -= costs[name]
        ranks[name] += 1
        if ranks[name] < len(gains[name]):
            heapq.heappush(waiting, (-float(gains[name][ranks[name]]) / costs[name], name))
    return ranks
