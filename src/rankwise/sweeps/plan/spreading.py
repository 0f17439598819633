"""Packs cut so that workers which train at the same time end at about the same time."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

One = TypeVar("One")

PACK, SEED, LARGEST = 8.5, 0.85, 3.75
"""What a pack costs, each seed in it (whose batches are its own), and a run that trains as much as the largest, in runs
that train next to nothing: fitted to 23 packs of the digits on one thread of a CPU (docs/log.md)."""

ALIKE = 2.5
"""Runs are padded to the largest of their pack that trains at most this many times as much."""

WORTH = 0.1
"""The share by which the longest worker's time must fall for a pack to be cut, where the others aren't idle."""


def spread(
    packs: Sequence[Sequence[One]],
    n: int,
    size: Callable[[One], float] = lambda run: 0.0,
    seed: Callable[[One], int] = lambda run: 0,
) -> list[list[One]]:
    """Cut packs for n workers, in the order of their runs.

    Args:
        packs: The runs.
        n: Workers.
        size: The numbers that a run trains.
        seed: A run's.

    Examples:
        >>> spread([[1, 2, 3, 4, 5], [6]], 3)
        [[1, 2, 3], [4, 5], [6]]
        >>> spread([[1, 2]], 8)
        [[1], [2]]
        >>> spread([[1] * 6 + [64] * 4], 2, float)
        [[1, 1, 1, 1, 1, 1, 64], [64, 64, 64]]
    """
    found = [list(pack) for pack in packs]
    most = max((size(run) for pack in packs for run in pack), default=0.0) or 1.0

    def cost(pack: Sequence[One]) -> float:
        sizes = Counter(size(run) / most for run in pack)
        padded = {s: max(other for other in sizes if other <= ALIKE * s) for s in sizes}
        return (
            PACK
            + SEED * len({seed(run) for run in pack})
            + sum(k * (1 + LARGEST * padded[s]) for s, k in sizes.items())
        )

    while found:
        costs = [cost(pack) for pack in found]
        loads = [(0.0, -1)] * n  # the cost of a worker's packs, and the number of its largest
        for i in sorted(range(len(found)), key=lambda i: -costs[i]):
            least = min(range(n), key=lambda worker: loads[worker][0])
            load, largest = loads[least]
            loads[least] = load + costs[i], i if largest < 0 else largest
        (high, i), (low, _) = max(loads), min(loads)
        pack = found[i]
        cuts = {at: max(high - costs[i] + cost(pack[:at]), low + cost(pack[at:])) for at in range(1, len(pack))}
        at = min(cuts, key=lambda at: (cuts[at], -at), default=0)
        if not at or high - cuts[at] <= (WORTH * high if low else 0):
            return found
        found[i : i + 1] = [pack[:at], pack[at:]]
    return found
