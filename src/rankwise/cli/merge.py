"""`rankwise merge`."""

from pathlib import Path

from rankwise.cli.app import EXIT_OK, app
from rankwise.tasks.text.use.options import MergeOptions


@app.command
def merge(adapter: Path, *, out: Path, options: MergeOptions | None = None) -> int:
    """Merge an adapter into its base, and write a folder that transformers loads.

    Example: rankwise merge runs/last/adapters/r8-lr0.001-s0 --out merged

    Parameters
    ----------
    adapter:
        The adapter's folder.
    out:
        The new folder: weights, configuration, tokenizer.
    """
    from rankwise.tasks.text.use.images import load_adapted_images, merge_images
    from rankwise.tasks.text.use.merging import check_out, load_to_merge, merge_into_folder
    from rankwise.tasks.text.use.served import reads_images

    check_out(out)
    use = (options or MergeOptions()).use()
    if reads_images([adapter]):
        merged = merge_images(load_adapted_images([adapter], use), out)
    else:
        merged = merge_into_folder(load_to_merge(adapter, use), out)
    for note in merged.notes:
        print(note)
    print(merged.report)
    print(merged.folder)
    return EXIT_OK
