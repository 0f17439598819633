"""`rankwise evaluate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app
from rankwise.shown import json_line, printable, shortened
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.use.options import EvaluatedData, UseOptions

if TYPE_CHECKING:
    from rankwise.tasks.text.use.evaluating.result import Evaluation


@app.command
def evaluate(
    *adapters: Path,
    examples: EvaluatedData,
    generate: int = 0,
    max_new_tokens: int = 64,
    out: Path | None = None,
    report: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
    options: UseOptions | None = None,
) -> int:
    """Evaluate adapters and their base on a file of examples.

    Example: rankwise evaluate runs/last/adapters/* --data test.csv

    Parameters
    ----------
    adapters:
        Folders of adapters.
    generate:
        For sft: write answers to this many inputs, drawn from the whole file, and compare each with all references of
        its input (exact match, BLEU, ROUGE). Inputs that leave no room for an answer are left out.
    max_new_tokens:
        The most tokens of an answer.
    out:
        Write the figures to this JSON file.
    report:
        Write figures (of classifiers also predictions, figures of each label and confusion matrices: CSV and PNG) into
        this folder.
    json_:
        Print the figures as JSON.
    """
    from rankwise.tasks.text.use.evaluating.files import check_report
    from rankwise.tasks.text.use.evaluating.texts import evaluate_texts
    from rankwise.tasks.text.use.images import evaluate_images, load_adapted_images
    from rankwise.tasks.text.use.served import load_adapted, reads_images
    from rankwise.writing import check_not_read, replacing

    if out is not None:
        check_not_read(out, [Path(examples.data), *adapters])
    if report is not None:
        check_report(report)
    options = options or UseOptions()
    if reads_images(adapters):
        served = load_adapted_images(adapters, options)
        found = evaluate_images(
            served,
            examples.data,
            columns=dict(examples.columns),
            skip_bad=examples.skip_bad_lines,
            limit=examples.limit,
            generate=generate,
        )
    else:
        found = evaluate_texts(
            load_adapted(adapters, options),
            examples.data,
            columns=dict(examples.columns),
            split=examples.split,
            skip_bad_lines=examples.skip_bad_lines,
            limit=examples.limit,
            generate=generate,
            writing=Writing(max_new_tokens=max_new_tokens),
        )
    if json_:
        print(json_line(found.plain(), indent=2))
    else:
        _show(found)
    # Last: an unwritable folder then costs no figures.
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(json_line(found.plain(), indent=2) + "\n", encoding="utf-8")
    if report is not None:
        from rankwise.tasks.text.use.evaluating.files import write_evaluation

        for path in write_evaluation(found, report):
            print(path, file=sys.stderr if json_ else sys.stdout)
    return EXIT_OK


def _show(found: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rankwise.tasks.text.score.classes import most_confused

    figures = found.figures
    table = Table(box=None, header_style="")
    table.add_column("adapter")
    names = next(iter(figures.values())).keys()
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for adapter, values in figures.items():
        table.add_row(Text(printable(adapter)), *(f"{values[name]:.4g}" for name in names))
    console = Console(soft_wrap=False)
    for note in dict.fromkeys(found.notes):
        console.print(printable(note), highlight=False, markup=False)
    console.print(table)
    for name, counts in found.confusions.items():
        pairs = most_confused(counts, found.labels) if found.labels else []
        if pairs:
            shown = "; ".join(
                f'"{shortened(predicted)}" for "{shortened(label)}" ({n:,})' for label, predicted, n in pairs
            )
            console.print(f"{printable(name)} most often predicts {shown}.", highlight=False, markup=False)
