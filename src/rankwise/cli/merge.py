"""`rankwise merge`."""

from pathlib import Path

from rankwise.cli.app import EXIT_OK, app
from rankwise.errors import ConfigError
from rankwise.tasks.text.use_options import UseOptions


@app.command
def merge(adapter: Path, *, out: Path, options: UseOptions | None = None) -> int:
    """Merge an adapter into its base, and write a folder that transformers loads.

    Parameters
    ----------
    adapter:
        The adapter's folder.
    out:
        The new folder: weights, configuration, tokenizer.
    """
    from rankwise.tasks.text.merging import check_out, load_to_merge, merge_into_folder

    options = options or UseOptions()
    # They tell how texts are read, which merging does not.
    for flag in ("max_length", "loss_on", "chat", "separator"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')} does nothing in rankwise merge; leave it out.")
    check_out(out)
    merged = merge_into_folder(load_to_merge(adapter, options), out)
    for note in merged.notes:
        print(note)
    print(merged.report)
    print(merged.folder)
    return EXIT_OK
