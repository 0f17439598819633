"""Every figure, of results that nobody would wish for: no text meets another, a bar, a point or the edge."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from figure_boxes import collisions, texts_of
from rankwise.report.compare import Cell, RunComparison, build_comparison
from rankwise.report.curves import MOST_PANELS, Curve, build_curves
from rankwise.report.figures import FIGURES, FULL_SIZE, PAGE_SIZE, build_figure, own_style
from rankwise.results import Results
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.score.classes import build_confusion
from sample_results import sample_results

LONG = "full fine-tuning of every weight with a learning rate of its own and label smoothing"


def renamed(results: Results) -> Results:
    for c in results.configurations:
        c.label = f"r = {c.r} dora on q_proj, k_proj, v_proj, o_proj, gate_proj" if c.r else LONG
    if results.relative_to is not None:
        results.relative_to.label = LONG
    return results


def level(results: Results, value: float = 0.95) -> Results:
    """All configurations equally good, with no spread."""
    for c in results.configurations:
        c.mean, c.interval, c.relative_metric = value, (value, value), value / 0.984
    return results


def diverged(results: Results) -> Results:
    first, second, third, *_ = results.configurations
    first.mean, first.interval = math.nan, None
    second.mean, second.interval = math.inf, (math.nan, math.inf)
    third.interval = (-math.inf, third.mean or 0.0)
    return results


def scaled(results: Results, factor: float) -> Results:
    for c in results.configurations:
        if c.mean is not None and c.interval is not None:
            c.mean, c.interval = c.mean * factor, (c.interval[0] * factor, c.interval[1] * factor)
    return results


SWEEPS: dict[str, Callable[[], Results]] = {
    "a hundred": lambda: sample_results(range(1, 101)),
    "a hundred with long names": lambda: renamed(sample_results(range(1, 101), half_width=0.02)),
    "long names": lambda: renamed(sample_results()),
    "equal": lambda: level(sample_results()),
    "equal at zero": lambda: level(sample_results(), 0.0),
    "one against full fine-tuning": lambda: sample_results([4]),
    "diverged": lambda: diverged(sample_results()),
    "wide intervals": lambda: sample_results(separable=False, half_width=0.3),
    "many long baselines": lambda: sample_results(baselines=[(f"{LONG} {i}", 0.9 + 0.005 * i) for i in range(14)]),
    "a huge loss": lambda: scaled(sample_results(metric="loss", higher_is_better=False), 1e30),
    "a tiny loss": lambda: scaled(sample_results(metric="mean_squared_error", higher_is_better=False), 1e-9),
}


BOTH = [(FIGURES[0], FULL_SIZE), (FIGURES[1], PAGE_SIZE)]


@pytest.mark.parametrize(
    ("case", "name", "size"),
    [
        # Each case in one figure, and in the other one among the slow tests.
        pytest.param(case, *drawn, marks=() if i % 2 == j else pytest.mark.slow, id=f"{drawn[0]}-{case}")
        for i, case in enumerate(SWEEPS)
        for j, drawn in enumerate(BOTH)
    ],
)
def test_of_a_sweep(case: str, name: str, size: tuple[float, float]) -> None:
    results = SWEEPS[case]()
    with own_style():
        figure = build_figure(results, name, size)
        assert figure is not None
        assert collisions(figure) == []
        answer = any(
            ", the answer" in text.get_text() or text.get_fontweight() == "bold" for text in figure.axes[0].texts
        )
    assert answer is any(c.is_answer and c.name for c in results.configurations)


FALLING = Curve([10, 20, 30], [2.0, 1.0, 0.7], [1.5, 1.1, 1.2])
CURVES: dict[str, Sequence[Curve]] = {
    "usual": [FALLING],
    "not numbers": [FALLING, Curve([10, 20], [math.nan] * 2, [math.inf, math.nan])],
    "none are numbers": [Curve([10, 20], [math.nan] * 2, [math.inf, math.nan])],
    "one blows up": [FALLING, FALLING, FALLING, Curve([10, 20], [1.0, 1e12], [1.0, 1e12])],
    "one epoch": [Curve([7], [0.5], [0.5])],
    "many steps": [Curve([400_000, 800_000, 1_200_000], [1e-7, 9e-8, 8e-8], [1e-7, 9e-8, 8e-8])],
}


@pytest.mark.parametrize("case", CURVES)
@pytest.mark.parametrize("ranks", [[4], [1, 4, 8, 16, 32]], ids=["one", "five"])
def test_of_losses(case: str, ranks: Sequence[int]) -> None:
    results = renamed(sample_results(ranks, baselines=() if len(ranks) == 1 else [(LONG, 0.98)]))
    curves = {run.name: CURVES[case][i % len(CURVES[case])] for i, run in enumerate(results.runs)}
    with own_style():
        figure = build_curves(results, curves, FULL_SIZE[0])
        assert figure is not None
        assert collisions(figure) == []
        if case == "one blows up" and len(ranks) > 1:
            assert figure.axes[0].get_ylim()[1] < 10


def test_of_the_losses_of_a_hundred() -> None:
    results = sample_results(range(1, 101), seeds=1)
    with own_style():
        figure = build_curves(results, {run.name: FALLING for run in results.runs}, FULL_SIZE[0])
        assert figure is not None
        assert collisions(figure) == []
    assert f"the first {MOST_PANELS} of 101" in figure.texts[0].get_text()


def comparison(names: Sequence[str], cells: Sequence[Cell | None]) -> RunComparison:
    rows = {f"r = {2**i}": tuple(cells[(i + j) % len(cells)] for j in range(len(names))) for i in range(6)}
    return RunComparison(tuple(names), "accuracy", True, rows, ())


SOUND = [Cell(0.9 + 0.01 * i, (0.88 + 0.01 * i, 0.92 + 0.01 * i), 1000 * 2**i, i == 2) for i in range(6)]
COMPARISONS = {
    "two": comparison(["a", "b"], SOUND),
    "thirty with long names": comparison([f"{LONG} {i}" for i in range(30)], SOUND),
    "gaps and no numbers": comparison(
        ["_a", "$b$"],
        [
            None,
            Cell(None, None, 5, False),
            Cell(math.nan, None, 7, True),
            Cell(0.5, (0.5, math.inf), 9, False),
        ],
    ),
    "nothing": comparison(["a", "b"], [None]),
    "no parameters": comparison(["a", "b"], [Cell(0.5, None, 0, False)]),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPARISONS)
def test_of_a_comparison(case: str) -> None:
    with own_style():
        figure = build_comparison(COMPARISONS[case])
        assert collisions(figure) == []
        names = COMPARISONS[case].names
        assert len(figure.legends[0].get_texts()) == len(names)


@pytest.mark.parametrize(
    ("n", "letters", "count"), [(2, 3, 7), (15, 40, 98_765_432), (15, 4, 9_999), (16, 40, 5), (77, 30, 9)]
)
def test_of_a_confusion_matrix(n: int, letters: int, count: int) -> None:
    labels = Labels("one", tuple(f"{i:02}" + "m" * (letters - 2) for i in range(n)))
    figure = build_confusion(torch.full((n, n), float(count)), labels, f"{LONG} {LONG}")
    assert collisions(figure, grows=True) == []  # it is saved as large as its texts make it
    assert len(texts_of(figure)) >= 2 * n
