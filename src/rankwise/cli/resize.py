"""`rankwise resize`."""

from pathlib import Path

from rankwise.cli.app import EXIT_OK, app
from rankwise.cli.places import check_adapters


@app.command
def resize(
    adapter: Path,
    /,
    *,
    out: Path,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
) -> int:
    """Cut a trained adapter to a smaller rank, as near to it as that rank allows.

    Example: rankwise resize runs/last/best --rank 4 --out smaller

    The update scale * B A of each module is truncated by its singular values; the base is not loaded. Give one of
    --rank, --energy and --error.

    Parameters
    ----------
    adapter:
        The adapter's folder, as Rankwise or peft has written it.
    out:
        The new folder.
    rank:
        The rank of every module.
    energy:
        A rank for each module: the smallest that leaves this share of the update's squared norm, such as 0.95.
    error:
        A rank for each module: the smallest whose relative error is at most this, such as 0.1.
    """
    from rankwise.surgery.resizing import resize

    check_adapters(adapter)
    print(resize(adapter, out, rank=rank, energy=energy, error=error))
    return EXIT_OK
