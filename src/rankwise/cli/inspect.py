"""`rankwise inspect`."""

import itertools
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app
from rankwise.cli.places import check_adapters
from rankwise.shown import json_line

if TYPE_CHECKING:
    from rankwise.report.adapter_run import AdapterRun
    from rankwise.surgery.inspecting import InspectedModule, Inspection

SHOWN = (
    ("base", "base_model_name_or_path"),
    ("task", "task_type"),
    ("rank", "r"),
    ("alpha", "lora_alpha"),
    ("dropout", "lora_dropout"),
    ("bias", "bias"),
    ("saved whole", "modules_to_save"),
)
"""Word -> field of the settings."""

_NUMBER = re.compile(r"\b\d+\b")
"""A layer's number in a path."""

FIGURES = ("r", "alpha", "norm", "stable_rank", "effective_rank")
"""What the table gives of each module."""


@app.command
def inspect(
    adapter: Path,
    /,
    *,
    modules: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    figure: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> int:
    """Show what an adapter is: settings, modules, sizes, norms, spectra, and the run it came from.

    Example: rankwise inspect runs/train/adapters/r8-s0

    The base is not loaded. The norm is the Frobenius norm of the update scale * B A. Its effective rank is how many
    directions it uses (r where all count alike, 1 where one is all), its stable rank norm^2 / largest^2 of its singular
    values: a low one says that a smaller rank may do (rankwise resize).

    Parameters
    ----------
    adapter:
        The adapter's folder.
    modules:
        List every module; by default modules that differ only in the number of their layer share a row.
    figure:
        Draw every module's singular values, ranks and norm into this file (.png, .svg or .pdf).
    json_:
        Print all of it as JSON, singular values included.
    """
    from rankwise.report.adapter_run import run_of_adapter
    from rankwise.surgery.inspecting import inspect_adapter

    check_adapters(adapter)
    if figure is not None:
        from rankwise.report.figures import figure_kind

        figure_kind(figure)
    found, run = inspect_adapter(adapter), run_of_adapter(adapter)
    if json_:
        print(json_line(_plain(found, run), indent=2))
    else:
        _show(found, run, each=modules)
    if figure is not None:
        from rankwise.report.adapter.spectra import draw_spectra

        print(draw_spectra(found, figure), file=sys.stderr if json_ else sys.stdout)
    return EXIT_OK


def _plain(found: "Inspection", run: "AdapterRun | None") -> dict[str, Any]:
    from rankwise.sweeps.storage.working_copy import shown

    return {
        "folder": shown(found.folder),
        "trainable_parameters": found.parameters,
        "bytes": found.bytes,
        "dtypes": list(found.dtypes),
        "settings": found.settings,
        "modules": [asdict(module) for module in found.modules],
        "saved_whole": {path: {"shape": shape, "norm": norm} for path, (shape, norm) in found.saved.items()},
        "run": None if run is None else asdict(run),
        "findings": list(found.findings),
    }


def _show(found: "Inspection", run: "AdapterRun | None", *, each: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from rankwise.adapter_files.peft.config import variant_of
    from rankwise.lora.variants import VARIANTS
    from rankwise.shown import printable
    from rankwise.sweeps.storage.working_copy import shown

    console = Console(soft_wrap=False)

    def line(text: str) -> None:
        console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    size = f"{found.bytes / 2**20:.2f} MiB" if found.bytes >= 2**17 else f"{found.bytes / 2**10:.1f} KiB"
    line(f"{shown(found.folder)}: {found.parameters:,} trainable parameters, {size} in {', '.join(found.dtypes)}")
    for word, key in SHOWN:
        value = found.settings.get(key)
        if value not in (None, [], ""):
            line(f"  {word}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    variant = VARIANTS[variant_of(found.settings)]
    scale = f"alpha / {'sqrt(r)' if found.settings.get('use_rslora') else 'r'}" if variant.scaled else "1"
    line(f"  kind: {variant.label}, scale {scale}")
    if run is not None:
        metric = "" if run.metric is None else f", test {run.metric_name} {run.metric:.4g}"
        rate = "" if run.lr is None else f"learning rate {run.lr:g}, "
        line(f"  run: {run.name} of {run.directory} ({run.started})")
        line(f"  trained: {rate}seed {run.seed}, {run.training_examples:,} examples, {run.status}{metric}")
        line(f"  command: {run.command}")
    groups = _groups(found.modules, each=each)
    above = _shared_path(groups)
    table = Table(box=None, header_style="")
    table.add_column(f"modules in {printable(above)}" if above else "module", overflow="fold", ratio=1)
    for column in ("n", "shape", *(key.replace("_", " ") for key in FIGURES)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, group in groups.items():
        d_out, d_in = group[0].shapes[1][0], "x".join(map(str, group[0].shapes[0][1:]))
        table.add_row(
            printable(name.removeprefix(f"{above}.")),
            str(len(group)),
            f"{d_out}x{d_in}",
            *(_span([getattr(m, key) for m in group]) for key in FIGURES),
        )
    console.print(table)
    for (name, shape), norms in _saved(found, each=each).items():
        n = f"{len(norms)} of " if len(norms) > 1 else ""
        line(f"  in full: {n}{name}, {'x'.join(map(str, shape))}, norm {_span(norms)}")
    for finding in found.findings:
        line(finding)


def _groups(modules: "Iterable[InspectedModule]", *, each: bool) -> "dict[str, list[InspectedModule]]":
    """Group modules of one shape whose names differ only in numbers."""
    groups: dict[str, list[InspectedModule]] = {}
    for module in modules:
        name = module.path if each else _NUMBER.sub("*", module.path)
        same = next(
            (key for key in groups if key.split(" #")[0] == name and groups[key][0].shapes == module.shapes), ""
        )
        n = sum(key.split(" #")[0] == name for key in groups)
        groups.setdefault(same or (f"{name} #{n + 1}" if n else name), []).append(module)
    return groups


def _saved(found: "Inspection", *, each: bool) -> dict[tuple[str, tuple[int, ...]], list[float]]:
    """The norms of what is saved whole, tensors of one name but for numbers, and of one shape, together."""
    groups: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for path, (shape, norm) in found.saved.items():
        groups.setdefault((path if each else _NUMBER.sub("*", path), shape), []).append(norm)
    return groups


def _shared_path(paths: Iterable[str]) -> str:
    """The path of the module that contains all of these.

    Examples:
        >>> _shared_path(["h.*.up", "h.*.down"]), _shared_path(["up", "down"])
        ('h.*', '')
    """
    split = [path.split(".")[:-1] for path in paths]
    same = itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*split, strict=False))
    return ".".join(parts[0] for parts in same)


def _span(values: "Iterable[float | None]") -> str:
    """The number, or the smallest and the largest of several."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = f"{min(known):.3g}", f"{max(known):.3g}"
    return low if low == high else f"{low} to {high}"
