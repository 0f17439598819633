"""Losses by epoch: a panel for each configuration, at the chosen learning rate, in which no text meets another."""

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rankwise.report.curves import Curve, build_curves, panels, read_curves
from rankwise.report.figures import draw_figures, own_style
from rankwise.report.page import page
from sample_results import sample_results

FALLING = Curve([10, 20, 30], [2.0, 1.0, 0.7], [1.5, 1.1, 1.2])


def curves_of(results):
    return {run.name: FALLING for run in results.runs}


def test_a_file_is_read_by_run(tmp_path):
    lines = ["run,step,train_loss,validation_loss,metric,lr,grad_norm", "a,1,2.0,3.0,0.5,0.1,1.0", "a,2,1.0,nan,0,0,0"]
    (tmp_path / "curves.csv").write_text("\n".join(lines))
    found = read_curves(tmp_path)
    assert found.keys() == {"a"}
    assert found["a"].steps == [1, 2]
    assert found["a"].train == [2.0, 1.0]
    assert read_curves(tmp_path / "nowhere") == {}


def test_every_configuration_has_a_panel_with_its_chosen_runs():
    results = sample_results([1, 4])
    found = panels(results, curves_of(results))
    assert [label for label, _ in found] == [c.label for c in results.configurations]
    assert [len(of) for _, of in found] == [len(c.runs) for c in results.configurations]
    assert panels(results, {}) == []


@pytest.mark.parametrize("ranks", [[4], [1, 4], [1, 2, 4, 8, 16, 32, 64]])
def test_no_text_meets_another(ranks):
    results = sample_results(ranks)
    with own_style():
        figure = build_curves(results, curves_of(results), 7.4)
        FigureCanvasAgg(figure).draw()
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert len(shown) == len(results.configurations)
        texts = [*figure.texts, *figure.legends[0].get_texts()]
        texts += [ax._left_title for ax in shown]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) == 2 + 3 + len(shown)
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]


def test_a_training_has_a_page_of_its_own(tmp_path: Path):
    results = sample_results([4], baselines=(), answer_r=4)
    text = page(results, curves_of(results))
    assert "One training" in text
    assert "How many trainable parameters?" not in text
    assert "The trade-off" not in text
    assert 'aria-label="Loss by epoch"' in text
    assert draw_figures(results, tmp_path) == []  # no curves.csv, and nothing to compare


def test_a_sweep_has_curves_beside_the_trade_off():
    results = sample_results([1, 4])
    text = page(results, curves_of(results))
    assert text.index("The trade-off") < text.index("The training")
    assert "How many trainable parameters?" in text
