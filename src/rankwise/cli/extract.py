"""`rankwise extract`."""

from pathlib import Path

from rankwise.cli.app import EXIT_OK, app


@app.command
def extract(
    base: Path,
    tuned: Path,
    /,
    *,
    out: Path,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    base_name: str | None = None,
) -> int:
    """Make a LoRA of what full fine-tuning changed.

    Example: rankwise extract models/base models/tuned --rank 16 --out lora

    Each layer's difference between the two models is approximated by its singular values, one pair of weights in memory
    at a time. What isn't of low rank is named with its error. Give one of --rank, --energy and --error.

    Parameters
    ----------
    base:
        Folder of the base, with its weights in safetensors.
    tuned:
        Folder of the fine-tuned model.
    out:
        The adapter's new folder.
    rank:
        The rank of every layer.
    energy:
        A rank for each layer: the smallest that leaves this share of the difference's squared norm, such as 0.95.
    error:
        A rank for each layer: the smallest whose relative error is at most this, such as 0.1.
    base_name:
        What the adapter calls its base; by default the folder.
    """
    from rankwise.surgery.extracting import extract

    print(extract(base, tuned, out, rank=rank, energy=energy, error=error, base_name=base_name))
    return EXIT_OK
