"""`rankwise generate`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app
from rankwise.errors import ConfigError, DataError
from rankwise.shown import json_line, printable
from rankwise.tasks.flags import listed
from rankwise.tasks.reading import parse_columns
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.use.options import UseOptions

if TYPE_CHECKING:
    from rankwise.tasks.text.data.examples import SftExample
    from rankwise.tasks.text.use.served import ServedModel


@app.command
def generate(
    *adapters: Path,
    prompt: str | None = None,
    file: Path | None = None,
    columns: Annotated[
        tuple[tuple[str, str], ...], listed(parse_columns, spaces=False), Parameter(show_default=False)
    ] = (),
    skip_bad_lines: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    base: bool = True,
    writing: Writing | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
    options: UseOptions | None = None,
) -> int:
    """Let adapters and their base answer prompts, side by side.

    Example: rankwise generate runs/last/adapters/* --prompt "Write a headline:"

    Without --prompt and --file prompts are read from the terminal, one a line, until the end of input (Ctrl-D).

    Parameters
    ----------
    adapters:
        Folders of adapters; none asks the base alone (--model).
    prompt:
        One prompt.
    file:
        A text file with a prompt on each line; or examples (.jsonl, .json, .csv, .tsv, .parquet), whose prompts are
        answered. Prompts that leave no room for an answer are left out, with a note.
    columns:
        Names of the columns of --file, where they differ: prompt=mr.
    skip_bad_lines:
        Leave out lines of --file that can't be used, with a note.
    base:
        Let the base without an adapter answer too.
    json_:
        Print a line of JSON for each prompt.
    """
    from rankwise.tasks.text.data.prompts import read_prompts
    from rankwise.tasks.text.use.generating import as_prompt, check_writes, with_room
    from rankwise.tasks.text.use.served import BASE_NAME, load_adapted

    if prompt is not None and file is not None:
        raise ConfigError("--prompt and --file are both given; leave one of them out.")
    if columns and file is None:
        raise ConfigError("--columns names columns of --file, which is not given; leave it out.")
    if skip_bad_lines and file is None:
        raise ConfigError("--skip-bad-lines applies to --file, which is not given; leave it out.")
    writing = writing or Writing()
    given, notes = (None if prompt is None else [as_prompt(prompt)]), []
    if file is not None:
        given, notes = read_prompts(file, dict(columns), skip_bad_lines=skip_bad_lines)
    adapted = load_adapted(adapters, options or UseOptions())
    check_writes(adapted)
    for note in (*adapted.notes, *notes):
        print(printable(note), file=sys.stderr)
    names = [*([BASE_NAME] if base or not adapted.names else []), *adapted.names]
    if given is not None:
        if len(given) > 1:
            places, left_out = with_room(adapted, names, given, writing, skip_bad_lines=skip_bad_lines)
            given = [given[i] for i in places]
            if not places:
                raise DataError(left_out[0])
            for note in left_out:
                print(printable(note), file=sys.stderr)
        for start in range(0, len(given), writing.batch_size):
            # Each batch as soon as it is answered; equal prompts in two batches are sampled independently.
            _answer(
                adapted,
                names,
                given[start : start + writing.batch_size],
                replace(writing, seed=writing.seed + start),
                as_json=json_,
            )
        return EXIT_OK
    for line in _typed():
        try:
            _answer(adapted, names, [as_prompt(line)], writing, as_json=json_)
        except (ConfigError, DataError) as error:  # the next prompt may fit
            print(f"rankwise: {error}", file=sys.stderr)
    return EXIT_OK


def _answer(
    adapted: "ServedModel", names: Sequence[str], prompts: "Sequence[SftExample]", writing: "Writing", *, as_json: bool
) -> None:
    from rankwise.tasks.text.use.generating import write_texts

    answers = {name: write_texts(adapted, name, prompts, writing) for name in names}
    width = max(map(len, names))
    for i, text in enumerate(prompt.source for prompt in prompts):
        own = {name: answers[name][i] for name in names}
        if as_json:
            print(json_line({"prompt": text, "answers": own}), flush=True)
            continue
        print(f"{'prompt':>{width}}  {printable(text)}")
        for name, answer in own.items():
            print(f"{name:>{width}}  {printable(answer.strip())}", flush=True)
        print()


def _typed() -> Iterator[str]:
    """Read prompts from a terminal."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DataError("Standard input is not UTF-8 text; save it as UTF-8.") from error
        if line.strip("\ufeff \t\r\n"):
            yield line.removeprefix("\ufeff")
