"""`rankwise combine`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app
from rankwise.cli.places import check_adapters


@app.command
def combine(
    *adapters: Path,
    out: Path,
    weights: Annotated[list[float] | None, Parameter(consume_multiple=True, negative="")] = None,
    method: Literal["linear", "cat", "svd", "ties", "dare"] = "svd",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> int:
    """Make one adapter of several that adapt the same modules of one base.

    Example: rankwise combine runs/a/best runs/b/best --weights .7 .3 --method svd --out both

    The result is compared with the exact sum of the updates, weight * scale * B A; the base is not loaded.

    Parameters
    ----------
    adapters:
        The adapters' folders, two or more.
    out:
        The new folder.
    weights:
        One number for each adapter; by default they are equal and sum to 1.
    method:
        cat: the exact sum, of the summed rank. svd: the sum truncated to a rank. linear: the factors summed, as peft
        does, which is no sum of the updates. ties: large entries that agree in sign. dare: entries dropped at random.
    rank:
        The result's rank (svd, ties, dare); by default the adapters' largest.
    density:
        Share of the entries that stay (ties, dare), such as 0.2.
    seed:
        Of dare's random entries.
    """
    from rankwise.surgery.combining import combine

    check_adapters(*adapters)
    print(combine(adapters, out, weights=weights, method=method, rank=rank, density=density, seed=seed))
    return EXIT_OK
