"""Results in Python: data frames, a figure, and what a notebook shows."""

import pytest
from torch import nn

from rankwise import LoRAConfig, inject
from rankwise.api import Sweep
from rankwise.errors import ConfigError
from rankwise.report.words import headline
from rankwise.sweeps.problem import SweepState
from sample_results import sample_results


@pytest.fixture
def found():
    return Sweep(sample_results([1, 4]), SweepState([], {}))


def test_configurations_and_runs_are_data_frames(found):
    frame = found.to_pandas()
    assert list(frame["name"]) == [c.name for c in found.results.configurations]
    assert list(frame["metric"]) == [c.mean for c in found.results.configurations]
    assert frame.loc[frame["is_answer"], "r"].tolist() == [4]
    assert (frame["low"] < frame["metric"]).all()
    runs = found.to_pandas("runs")
    assert list(runs["seed"]) == [run.seed for run in found.results.runs]
    with pytest.raises(ConfigError, match='no rows of "run"; there are configurations and runs'):
        found.to_pandas("run")


def test_the_figure_is_matplotlibs(found):
    assert found.plot().axes[0].get_xscale() == "log"
    assert "Relative" in found.plot(relative=True).texts[0].get_text()
    alone = Sweep(sample_results([4], baselines=()), SweepState([], {}))
    with pytest.raises(ConfigError, match="nothing to draw"):
        alone.plot()


def test_a_notebook_shows_answer_table_and_figure(found):
    html = found._repr_html_()
    assert headline(found.results) in html
    assert html.count("<tr") == 1 + 4  # the base, two ranks, full fine-tuning
    assert html.count("<svg") == 1
    assert "&lt;b&gt;" in Sweep(_named("<b>"), SweepState([], {}))._repr_html_()


def _named(label):
    results = sample_results([1, 4])
    results.configurations[0].label = label
    return results


def test_a_notebook_shows_what_inject_did():
    report = inject(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(r=2))
    assert report._repr_html_() == f"<pre>{report}</pre>"
