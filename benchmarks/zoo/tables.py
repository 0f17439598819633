"""The results of the zoo: a file to go on from, figures of the whole, a row for each model."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from zoo.checks import COLUMNS, Result


def read(path: Path) -> list[Result]:
    """Return the results that an earlier run left in a file."""
    return (
        [Result(**json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def append(path: Path, result: Result) -> None:
    """Add a result to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def line(result: Result) -> str:
    """One row of the table; what is "-" with a reason is explained below it."""
    marks = [result.checks.get(column, "") for column in COLUMNS]
    cells = [mark if mark in ("ok", "") else "-" if mark[0] == "-" else "WRONG" for mark in marks]
    figures = [f"{result.figures[name]:.0e}" if name in result.figures else "" for name in ("effect", "merge")]
    numbers = [str(result.adapted), str(result.unreached), str(sum(result.left_out.values()))]
    return "| " + " | ".join([result.name, result.kinds, result.status, *numbers, *figures, *cells]) + " |"


def table(results: Sequence[Result]) -> Iterator[str]:
    """A row for each model, and what is behind every mark that isn't "ok"."""
    header = ["model", "kinds", "status", "adapted", "not reached", "left out", "effect", "merge error", *COLUMNS]
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    yield from map(line, results)
    yield ""
    for result in results:
        if result.note:
            yield f"- {result.name} ({result.kinds}), {result.status}: {result.note}"
        yield from (
            f"- {result.name} ({result.kinds}), {column}: {text[2:]}"
            for column, text in result.checks.items()
            if text.startswith("- ")
        )


def summary(results: Sequence[Result]) -> Iterator[str]:
    """Counts: models by group and status, checks by what they said, layers left out, models refused."""
    for kinds in dict.fromkeys(result.kinds for result in results):
        part = [result for result in results if result.kinds == kinds]
        yield from _models(kinds, part)
        yield ""
        yield from _checks(part)
        yield ""
        left = Counter[str]()
        for result in part:
            left.update(result.left_out)
        yield from (f"- left out: {number} layers. {why}." for why, number in left.most_common())
        yield from (
            f"- {result.status}: {result.name}. {result.note}"
            for result in part
            if result.status in ("refused", "wrong", "time", "unusable")
        )
        yield ""


def _models(kinds: str, part: Sequence[Result]) -> Iterator[str]:
    statuses = ("right", "refused", "wrong", "time", "no such layer", "unusable")
    yield (
        f"| models, `{kinds}` | all | "
        + " | ".join(statuses)
        + " | layers adapted | merging refused | refused or merging refused, of those with such a layer |"
    )
    yield "|" + "---|" * (len(statuses) + 5)
    groups = sorted({result.group for result in part})
    for name, group in [*((name, [r for r in part if r.group == name]) for name in groups), ("all", part)]:
        count = Counter(result.status for result in group)
        usable = len(group) - count["unusable"] - count["no such layer"]
        unmerged = sum(result.checks.get("merge", "").startswith("- refused") for result in group)
        share = f"{(count['refused'] + unmerged) / usable:.1%}" if usable else ""
        layers = sum(result.adapted for result in group)
        yield (
            f"| {name} | {len(group)} | "
            + " | ".join(str(count[status]) for status in statuses)
            + f" | {layers:,} | {unmerged} | {share} |"
        )


def _checks(part: Sequence[Result]) -> Iterator[str]:
    """How many models each check found right; and why it had nothing to say of the others."""
    yield "| check | right | wrong | not comparable, and why |"
    yield "|---|---|---|---|"
    for column in COLUMNS:
        marks = [result.checks[column] for result in part if column in result.checks]
        silent = Counter(_reason(mark) for mark in marks if mark.startswith("-"))
        why = "; ".join(f"{number}: {reason}" for reason, number in silent.most_common())
        right = marks.count("ok")
        yield f"| {column} | {right} | {len(marks) - right - silent.total()} | {why} |"


def _reason(mark: str) -> str:
    """A reason without the names of one model's layers."""
    words = mark.removeprefix("- ").split('"')
    return '"..."'.join(words[::2]).split("\n")[0].replace("|", "/")
