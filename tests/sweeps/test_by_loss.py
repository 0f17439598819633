"""What the loss of the same runs says, in addition to the verdict by another metric."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankwise.report import answer_words
from rankwise.results import plain
from rankwise.results.outcomes import ByLoss, Leaning
from rankwise.sweeps.choose.answer import decide, reference_of
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.choose.configurations import choose_learning_rates
from rankwise.sweeps.choose.rule import Rule, default_tolerance
from rankwise.sweeps.floors import class_shares
from rankwise.sweeps.run.run import run_sweep
from rankwise.train.events import Observers
from sample_results import sample_results
from small_sweep import loss, small_model, small_problem, small_run, swept, typed_results_of

RUNS = [small_run(c, seed) for c in ("r1", "r4", "full") for seed in (0, 1, 2)]
FLOORS = Floors(constant=lambda rows: np.full(30, 1.1))


def test_it_is_the_rule_on_the_losses_of_the_same_runs():
    """Held against a sweep whose metric is the loss, at the weights that are saved."""
    found = swept(RUNS)
    said = typed_results_of(found, loss_floors=FLOORS).answer
    assert said is not None
    assert said.by_loss
    again = run_sweep(small_model(), RUNS, replace(small_problem(), metric=loss), Observers())
    runs = [replace(again.score(run), validation=again.scores[run.name].validation) for run in RUNS]
    chosen = choose_learning_rates(runs, False)
    rule = Rule(default_tolerance(False), False)
    expected = decide(chosen, reference_of(chosen, False), rule, FLOORS)
    assert (said.by_loss.verdict, said.by_loss.name) == (expected.verdict, expected.name)
    assert said.by_loss.tolerance == pytest.approx(expected.tolerance, rel=1e-5)
    if expected.leaning is not None:
        assert said.by_loss.leaning is not None
        assert said.by_loss.leaning.p_within == pytest.approx(expected.comparisons[expected.leaning].p_within, rel=1e-3)


def test_without_losses_or_without_a_floor_it_is_not_there():
    found = swept(RUNS[:4])
    for scores, floors in ((found.scores, None), (found.scores, Floors())):
        found.scores = scores
        answer = typed_results_of(found, loss_floors=floors).answer
        assert answer is not None
        assert "by_loss" not in plain(answer)
    # As read back from a run that an earlier version has written.
    found.scores = {name: replace(one, losses=None) for name, one in found.scores.items()}
    answer = typed_results_of(found, loss_floors=FLOORS).answer
    assert answer is not None
    assert "by_loss" not in plain(answer)


def test_a_loss_of_whole_batches_is_none_of_rows():
    """The mean of a batch, for each of its rows, would look like many observations of small spread."""
    problem = replace(small_problem(), loss=lambda outputs, batch: loss(outputs, batch).mean())
    found = run_sweep(small_model(), RUNS[:1], problem, Observers())
    assert found.scores[RUNS[0].name].losses is None


@pytest.mark.parametrize(
    ("by_loss", "line"),
    [
        (
            ByLoss(metric="log-loss", verdict="shown", name="r4", p_within=0.991, leaning=None, tolerance=0.01),
            "By log-loss, which decides with fewer examples and is not the answer: shown, r = 4, P = 99.1%.",
        ),
        (
            ByLoss(
                metric="log-loss", verdict="undecided", name="full", p_within=None, tolerance=0.01,
                leaning=Leaning(name="r8", p_within=0.73),
            ),
            "is not the answer: undecided, leaning to r = 8 (73%).",
        ),
        (
            ByLoss(metric="loss", verdict="nothing_smaller", name="full", p_within=None, leaning=None, tolerance=0.01),
            "By the loss, which decides with fewer examples and is not the answer: nothing smaller than full "
            "fine-tuning will do.",
        ),
    ],
)  # fmt: skip
def test_it_is_told_in_a_line(by_loss: ByLoss, line: str):
    results = sample_results()
    assert results.answer is not None
    results.answer.by_loss = by_loss
    assert line in answer_words(results)
    results.complete = False
    assert line not in answer_words(results)


def test_the_frequencies_of_the_classes_have_the_smallest_constant_loss():
    """Their mean log-loss on the training data is the entropy, which no other constant undercuts (Gibbs)."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    shares = np.array([3, 1, 2]) / 6
    assert class_shares(labels, labels).mean() == pytest.approx(-(shares * np.log(shares)).sum())
    other = np.array([0.4, 0.3, 0.3])
    assert class_shares(labels, labels).mean() < -(shares * np.log(other)).sum()
