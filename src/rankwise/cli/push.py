"""`rankwise push`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app


@app.command
def push(
    adapter: Path,
    repo: str,
    /,
    *,
    private: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    message: str | None = None,
) -> int:
    """Upload an adapter with its model card to the Hugging Face hub.

    Example: rankwise push runs/last my-name/banking-r8 --private

    The card is the adapter's README.md: read it first, since it names your data. The token is the one that
    `hf auth login` has stored, or HF_TOKEN.

    Parameters
    ----------
    adapter:
        The adapter's folder; or a run's directory, of which the recommended adapter (best), or the only one, is
        taken.
    repo:
        OWNER/NAME, or a name among your own; it is made where there is none.
    private:
        Make it one that only you see.
    message:
        Of the commit.
    """
    from rankwise.shown import printable
    from rankwise.tasks.text.card.push import push as upload

    pushed = upload(adapter, repo, private=private, message=message)
    print(f"{printable(str(pushed.folder))}: {', '.join(pushed.files)}")
    for note in pushed.notes:
        print(printable(note))
    print(f"{pushed.url}{' (private)' if pushed.private else ''}")
    return EXIT_OK
