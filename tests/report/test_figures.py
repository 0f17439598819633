"""The figures: there, the same every time, and labels that don't collide."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from figure_boxes import box_of, collisions
from rankwise.report.figures import FIGURES, FULL_SIZE, PAGE_SIZE, build_figure, draw_figures, figure_svg
from rankwise.report.points import scene
from sample_results import sample_results

BASELINES = [("the notebook's baseline (digits 0-4)", 0.984), ("its budget on 5-9", 0.931), ("LoRA's budget", 0.984)]
SAMPLES: list[dict[str, Any]] = [
    {},
    {"published": True, "baselines": BASELINES},
    {"baselines": [], "answer_r": 8},
    {"ranks": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], "half_width": 0.0005},
    {"metric": "loss", "higher_is_better": False},
    {"answer_r": None, "half_width": 0.02, "base_metric": None},
    {"separable": False, "published": True, "baselines": BASELINES, "half_width": 0.01},
]


def test_files_and_bytes(tmp_path: Path) -> None:
    results = sample_results([4, 8])
    first, second = draw_figures(results, tmp_path / "a"), draw_figures(results, tmp_path / "b")
    assert [path.name for path in first] == [f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    assert sorted(first) == sorted((tmp_path / "a").iterdir()), "nothing temporary stays"
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[1].read_text().startswith("<?xml")
    assert "<dc:date>" not in first[1].read_text()


def test_the_users_style_does_not_matter() -> None:
    import matplotlib

    expected = figure_svg(sample_results([4, 8]), "relative")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none"}):
        assert figure_svg(sample_results([4, 8]), "relative") == expected
        assert matplotlib.rcParams["font.size"] == 30


def labels(figure: Figure) -> list[Annotation]:
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation) and text.get_text()]


@pytest.mark.parametrize("size", [FULL_SIZE, PAGE_SIZE])
@pytest.mark.parametrize("name", FIGURES)
def test_wide_tick_labels_leave_room_for_the_axis_label(name: str, size: tuple[float, float]) -> None:
    results = sample_results([4, 8])
    for c in results.configurations:
        c.relative_metric = 1.0 + 1e-5 * (c.mean or 0.0)
        c.mean = 0.98 + 1e-5 * (c.mean or 0.0)
        c.interval = (c.mean - 1e-6, c.mean + 1e-6)
    figure = build_figure(results, name, size)
    assert figure is not None
    label = figure.axes[0].yaxis.label
    figure.draw_without_rendering()
    assert label.get_window_extent().x0 >= 0.04 * figure.dpi
    assert figure.axes[0].get_position().width > 0.6


@pytest.mark.parametrize(("name", "size"), [(FIGURES[0], FULL_SIZE), (FIGURES[1], PAGE_SIZE)], ids=FIGURES)
@pytest.mark.parametrize("given", SAMPLES, ids=range(len(SAMPLES)))
def test_no_text_meets_another_a_bar_a_point_or_a_grid_line(
    given: dict[str, Any], name: str, size: tuple[float, float]
) -> None:
    results = sample_results(**given)
    figure = build_figure(results, name, size)
    assert figure is not None
    ranks = {c.label for c in results.configurations if c.method == "lora"}
    assert {text.get_text().removesuffix(", the answer") for text in labels(figure)} >= ranks
    assert collisions(figure) == []
    frame = box_of(figure.axes[0])
    for text in labels(figure):
        left, low, right, high = box_of(text)
        assert frame[0] <= left <= right <= frame[2], text
        assert frame[1] <= low <= high <= frame[3], text
    (grid,) = (one for one in figure.axes[0].collections if isinstance(one, LineCollection) and one.get_zorder() == 0.5)
    assert len({float(line[0][1]) for line in grid.get_segments()}) > 2


def test_what_is_shown() -> None:
    results = sample_results(published=True, baselines=BASELINES)
    shown = scene(results, relative=False)
    assert [point.label for point in shown.lora] == [f"r = {2**i}" for i in range(7)]
    assert [point.label for point in shown.lora if point.is_answer] == ["r = 4"]
    assert shown.others[0].label == "LoRA's budget", "the reference comes first"
    assert len({(point.colour, point.marker) for point in (*shown.others, *shown.lora)}) == 4
    assert len(shown.published) == 8
    assert shown.band == (0.984, pytest.approx(0.984 * 0.975))


def test_relative_is_in_percent_of_what_the_table_says() -> None:
    shown = scene(sample_results(), relative=True)
    baseline = shown.others[0]
    assert (baseline.x, baseline.y) == (100, 100)
    assert baseline.interval == pytest.approx((100 * 0.981 / 0.984, 100 * 0.987 / 0.984))
    assert shown.band == pytest.approx((100, 97.5))


def test_lower_is_better_turns_the_band_round() -> None:
    shown = scene(sample_results(metric="loss", higher_is_better=False), relative=False)
    assert shown.band is not None
    assert shown.band[1] > shown.band[0]


def test_what_has_no_parameters_is_left_out() -> None:
    results = sample_results()
    results.configurations[0].trainable_parameters = 0
    results.configurations[1].mean = None
    assert scene(results, relative=False).lora[0].label == "r = 4"


def test_nothing_to_draw(tmp_path: Path) -> None:
    results = sample_results()
    results.relative_to = None
    assert [path.stem for path in draw_figures(results, tmp_path)] == [FIGURES[0], FIGURES[0]]
    for c in results.configurations:
        c.mean = None
    assert draw_figures(results, tmp_path) == []
    assert figure_svg(results, "relative") is None
