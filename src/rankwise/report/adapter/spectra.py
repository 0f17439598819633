"""A figure of an adapter's updates: singular values, ranks that they make use of, and norms, module by module."""

from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import AdapterError
from rankwise.report.figures import figure_kind, own_style
from rankwise.report.points import BLUE, GRID, INK, MUTED, ORANGE
from rankwise.surgery.inspecting import InspectedModule, Inspection
from rankwise.writing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 60
"""Up to so many modules are each named; of more, every second, third, ..."""

_ROW, _AROUND, _MOST = 0.16, 1.2, 20.0
"""Inches: a module's row, what stands above and below, the highest figure."""


def draw_spectra(inspection: Inspection, path: Path) -> Path:
    """Draw the singular values of every module's update, its stable and effective rank, and its norm.

    Args:
        inspection: What the adapter's folder holds.
        path: The figure's file; its ending says of which kind.

    Returns:
        The file.

    Raises:
        AdapterError: No module has a low-rank update.
        OutputError: Its ending is that of no figure, or the file can't be written.
    """
    kind = figure_kind(path)
    modules = [module for module in inspection.modules if module.singular_values]
    if not modules:
        raise AdapterError(f"{inspection.folder} has no module with a low-rank update, so nothing to draw.")
    with own_style():
        figure = _figure(modules)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind)
    return path


def _figure(modules: list[InspectedModule]) -> "Figure":
    import numpy as np
    from matplotlib.figure import Figure

    height = min(_MOST, _AROUND + _ROW * max(4, len(modules)))
    figure = Figure(figsize=(10, height), dpi=130, layout="constrained")
    spectra, ranks, norms = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 1.2))
    most = max(len(module.singular_values or ()) for module in modules)
    values = np.full((len(modules), most), np.nan)
    for row, module in zip(values, modules, strict=True):
        sigma = np.array(module.singular_values)
        row[: len(sigma)] = sigma / sigma[0] if sigma[0] > 0 else sigma
    places = range(len(modules))
    image = spectra.imshow(
        values, aspect="auto", cmap="viridis", vmin=0, vmax=1, extent=(0.5, most + 0.5, len(modules) - 0.5, -0.5)
    )
    figure.colorbar(image, ax=spectra, label="singular value / largest", pad=0.02)
    step = 1 + len(modules) // _NAMED
    spectra.set_yticks(list(places)[::step], [module.path for module in modules][::step], fontsize=6)
    spectra.set_xlabel("singular value", color=INK)
    ranks.plot([module.stable_rank for module in modules], places, "o", color=ORANGE, markersize=3.5, label="stable")
    ranks.plot(
        [module.effective_rank for module in modules], places, "o", color=BLUE, markersize=3.5, label="effective"
    )
    ranks.plot([module.r for module in modules], places, "|", color=MUTED, markersize=6, label="r")
    ranks.set_xlim(left=0)
    ranks.set_xlabel("rank", color=INK)
    figure.legend(*ranks.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=7, frameon=False)
    norms.barh(places, [module.norm or 0.0 for module in modules], color=BLUE, height=0.7)
    norms.set_xlabel("Frobenius norm", color=INK)
    for ax in (ranks, norms):
        ax.grid(axis="x", color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
    return figure
