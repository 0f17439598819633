"""`rankwise predict`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app
from rankwise.errors import ConfigError, DataError
from rankwise.shown import printable
from rankwise.tasks.flags import listed
from rankwise.tasks.reading import parse_columns
from rankwise.tasks.text.use.options import UseOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rankwise.tasks.text.data.examples import Labelled
    from rankwise.tasks.text.use.images import ServedImages
    from rankwise.tasks.text.use.served import ServedModel

FORMATS = ("text", "csv", "jsonl")


@app.command
def predict(
    *adapters: Path,
    text: str | None = None,
    file: Path | None = None,
    columns: Annotated[
        tuple[tuple[str, str], ...], listed(parse_columns, spaces=False), Parameter(show_default=False)
    ] = (),
    skip_bad_lines: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    out: Path | None = None,
    format_: Annotated[str, Parameter(name="--format")] = "text",
    all_labels: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    options: UseOptions | None = None,
) -> int:
    """Label texts or images, with probabilities, by one classifier or several side by side.

    Example: rankwise predict runs/last/adapters/r8-lr0.001-s0 --text "How do I locate my card?"

    Without --text and --file texts are read from standard input, one a line.

    Parameters
    ----------
    adapters:
        Folders of adapters that classify texts, or images.
    text:
        One text.
    file:
        A text file with a text on each line; or texts in a column (.jsonl, .json, .csv, .tsv, .parquet). An image, or
        a folder of images.
    columns:
        Names of the columns of --file, where they differ: text=question.
    skip_bad_lines:
        Leave out lines of --file that can't be used, with a note.
    out:
        Write the predictions to this .csv or .jsonl file.
    format_:
        The format on the terminal: text, csv or jsonl.
    all_labels:
        Write the probability of every label, not only of the predicted one.
    """
    from rankwise.tasks.text.data.prompts import as_text, read_texts
    from rankwise.tasks.text.use.images import listed_images, load_adapted_images
    from rankwise.tasks.text.use.prediction_files import format_of
    from rankwise.tasks.text.use.served import load_adapted, reads_images
    from rankwise.writing import check_not_read

    if text is not None and file is not None:
        raise ConfigError("--text and --file are both given; leave one of them out.")
    for flag, value in (("--columns", columns), ("--skip-bad-lines", skip_bad_lines)):
        if value and file is None:
            raise ConfigError(f"{flag} applies to --file, which is not given; leave it out.")
    if format_ not in FORMATS:
        raise ConfigError(f'--format is "{format_}"; it is one of {", ".join(FORMATS)}.')
    if not adapters:
        raise ConfigError("No adapter is given; name the folder of one that classifies texts.")
    if text is not None and not text.strip():
        raise DataError("The text is empty; give --text one with at least a letter.")
    if out is not None:
        format_of(out)
        check_not_read(out, [*([] if file is None else [file]), *adapters])
    options = options or UseOptions()
    if reads_images(adapters):
        if file is None:
            raise ConfigError("The adapter classifies images; give --file an image, or a folder of images.")
        show = _Show(load_adapted_images(adapters, options), format_, out, all_labels)
        for note in show.adapted.notes:
            print(printable(note), file=sys.stderr)
        show(listed_images(file))
        return EXIT_OK
    texts, notes = (None if text is None else [as_text(1, text)]), []
    if file is not None:
        texts, notes = read_texts(file, dict(columns), skip_bad_lines=skip_bad_lines)
    show = _Show(load_adapted(adapters, options), format_, out, all_labels)
    for note in (*show.adapted.notes, *notes):
        print(printable(note), file=sys.stderr)
    if texts is None and out is None and format_ == "text" and sys.stdin.isatty():
        for line in _typed():
            try:
                show(line)
            except (ConfigError, DataError) as error:  # the next text may fit
                print(f"rankwise: {error}", file=sys.stderr)
        return EXIT_OK
    show(list(_lines()) if texts is None else texts)
    return EXIT_OK


class _Show:
    """Predicts, and prints or writes the predictions."""

    def __init__(self, adapted: "ServedModel | ServedImages", format_: str, out: Path | None, all_labels: bool) -> None:
        self.adapted, self._format, self._out, self._all = adapted, format_, out, all_labels

    def __call__(self, texts: "Sequence[Labelled]") -> None:
        from rankwise.tasks.text.use.images import ServedImages, predict_images
        from rankwise.tasks.text.use.predicting import predict_texts
        from rankwise.tasks.text.use.prediction_files import predictions_as, write_predictions

        if not texts:
            raise DataError("There are no texts; give --text, --file, or lines on standard input.")
        if isinstance(self.adapted, ServedImages):
            found, notes = predict_images(self.adapted, texts), []
        else:
            found, notes = predict_texts(self.adapted, texts)
        for note in notes:
            print(printable(note), file=sys.stderr)
        if self._out is not None:
            print(write_predictions(texts, found, self._out, every=self._all))
        elif self._format != "text":
            content = predictions_as(self._format, texts, found, every=self._all)
            # A file or another program gets the texts unchanged.
            print(printable(content) if sys.stdout.isatty() else content, end="")
        else:
            for i, text in enumerate(texts):
                print(printable(" | ".join(filter(None, (text.text, text.text_pair)))))
                for name, said in found.items():
                    shown = f"  {name}  " if len(found) > 1 else "  "
                    print(printable(f"{shown}{said[i].shown(every=self._all)}"), flush=True)


def _lines() -> "Iterator[Labelled]":
    """Texts on standard input, one a line."""
    from rankwise.tasks.text.data.prompts import as_text
    from rankwise.tasks.text.read.text_files import read_lines

    for i, line in enumerate(read_lines(sys.stdin), start=1):
        if line.strip():
            yield as_text(i, line)


def _typed() -> "Iterator[list[Labelled]]":
    """Read texts from a terminal."""
    from rankwise.tasks.text.data.prompts import as_text

    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if line.strip():
            yield [as_text(1, line)]
