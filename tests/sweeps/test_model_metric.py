"""Metrics that need the model itself, on the way from runs to results."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise import ModelMetric, Training
from rankwise.errors import ConfigError, DataError, PackError
from rankwise.sweeps.attaching import acting
from rankwise.sweeps.plan.plan import fingerprint
from rankwise.sweeps.problem import Problem, Splits, SweepState
from rankwise.sweeps.run.run import WithinSweep, run_sweep
from rankwise.train.data.cuts import pooled
from rankwise.train.events import Observers
from small_sweep import accuracy, loss, small_model, small_problem, small_run, some_data


def right(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Accuracy, read off the model."""
    assert not model.training
    return (model(rows[0]).argmax(-1) == rows[1]).float()


RUNS = [small_run(c, seed) for c in ("r1", "r4", "full") for seed in (0, 1)]


@pytest.fixture(scope="module")
def by_forward() -> SweepState:
    return run_sweep(small_model(), RUNS, small_problem(), Observers())


def test_the_model_of_a_run_gives_what_its_pack_gives(by_forward: SweepState):
    """Accuracy read off each run's own model, adapters and full fine-tuning, is that of the pack's forward pass."""
    model, problem = small_model(), replace(small_problem(), metric=loss, model_metric=ModelMetric(right))
    before = fingerprint(model.state_dict())
    found = run_sweep(model, RUNS, problem, Observers())
    assert fingerprint(model.state_dict()) == before
    assert not any("lora" in name for name, _ in model.named_modules())
    for run in RUNS:
        ours, theirs = found.scores[run.name], by_forward.scores[run.name]
        assert np.array_equal(ours.validation, theirs.validation)
        assert np.array_equal(ours.test, theirs.test)
        assert np.array_equal(ours.other["accuracy_elsewhere"], theirs.other["accuracy_elsewhere"])
        assert ours.deciding is None, "no epoch was chosen by it"
        assert np.array_equal(ours.decisive, theirs.validation)
        assert ours.losses is not None
        assert ours.losses.mean() == pytest.approx(ours.validation_loss)


def test_a_search_goes_by_the_loss():
    problem = replace(small_problem(), metric=loss, model_metric=ModelMetric(right))
    found = run_sweep(small_model(), RUNS[:1], problem, Observers(), within=WithinSweep(tests=False))
    (scores,) = found.scores.values()
    assert scores.validation.mean() == pytest.approx(scores.validation_loss)
    assert problem.each_epoch.higher_is_better is False


def test_rows_with_one_input_count_once_where_seeds_cut_their_own():
    """Every second row repeats the one before it: of a pair only the first is measured."""
    (x, y), (v, w) = some_data(20, 0), some_data(10, 1)
    twice = [t.repeat_interleave(2, 0) for t in (x, y, v, w)]
    groups = torch.arange(30).repeat_interleave(2)
    train, validation, rotation = pooled(tuple(twice[:2]), tuple(twice[2:]), groups)

    def firsts(rows: tuple[Tensor, Tensor]) -> Tensor:
        same = (rows[0][1:] == rows[0][:-1]).all(-1)
        return torch.cat([torch.tensor([True]), ~same]).nonzero().squeeze(-1)

    splits = Splits(train, validation, some_data(10, 2), rotation)
    metric = ModelMetric(right, representatives=firsts)
    problem = Problem({"data": splits}, loss, loss, rotate=True, model_metric=metric)
    found = run_sweep(small_model(), RUNS[:2], problem, Observers())
    seen: list[set[int]] = []
    for run in RUNS[:2]:
        rows = found.scores[run.name].rows
        assert rows is not None
        assert len(rows) == len(found.scores[run.name].validation) == 10
        assert (rows % 2 == 0).all()
        seen.append({*rows.tolist()})
    assert not seen[0] & seen[1]


def test_from_python():
    found = rankwise.sweep(
        small_model(),
        [1, 2],
        train=some_data(60, 0),
        validation=some_data(30, 1),
        test=some_data(30, 2),
        loss=loss,
        metric=ModelMetric(lambda model, rows: torch.stack([right(model, rows), torch.ones(len(rows[1]))], -1),
                           lambda sums: sums[..., 0] / sums[..., 1]),
        metric_name="share",
        lrs=[3e-2],
        baseline=3e-3,
        seeds=2,
        plan="grid",
        training=Training(epochs=3, batch_size=8),
        progress="quiet",
    )  # fmt: skip
    assert found.results.metric.name == "share"
    assert found.results.metric.higher_is_better
    model = small_model()
    x, y = some_data(30, 2)
    assert found.results.base.metric == pytest.approx(float(accuracy(model(x), (x, y)).mean()), abs=1e-6)
    chosen = found.results.configuration("r2")
    assert chosen is not None
    values = []
    for name in chosen.runs:
        found.put_on(model, name, "one")
        values.append(float(accuracy(model(x), (x, y)).mean()))
        rankwise.eject(model, "one")
    assert chosen.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert found.answer is not None
    assert found.answer.by_loss, "the loss is told in addition"


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (ModelMetric(lambda m, rows: torch.ones(3)), PackError, r"shape \(3,\) for 20 rows.* without of_sums returns"),
        (ModelMetric(right, lambda sums: sums), PackError, r"shape \(20,\) for 20 rows.* returns \(20, C\)"),
        (ModelMetric(right, None, lambda rows: torch.tensor([0])), DataError, "1 of 20 rows can be measured"),
    ],
)
def test_what_can_not_be_measured_is_refused(metric: ModelMetric, error: Any, message: str):
    with pytest.raises(error, match=message):
        metric.rows(small_model(), some_data(20, 2))


def test_an_error_on_one_runs_model_ends_that_run(by_forward: SweepState):
    calls: list[int] = []

    def strict(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(len(rows[0]))
        if len(calls) == 1:
            raise ZeroDivisionError("no answer has a word")
        return right(model, rows)

    problem = replace(small_problem(), metric=loss, model_metric=ModelMetric(strict))
    found = run_sweep(small_model(), RUNS, problem, Observers())
    lost = {name: outcome for name, outcome in found.outcomes.items() if outcome.status == "failed"}
    (name, outcome), *others = lost.items()
    assert not others
    assert outcome.reason is not None
    assert outcome.reason.startswith("the metric raised ZeroDivisionError: no answer has a word (test_model_metric.py")
    assert found.scores.keys() == by_forward.scores.keys() - {name}
    assert all(np.array_equal(found.scores[n].test, by_forward.scores[n].test) for n in found.scores)

    def never(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        raise ZeroDivisionError("always")

    with pytest.raises(ZeroDivisionError, match="always"):
        run_sweep(small_model(), RUNS[:2], replace(problem, model_metric=ModelMetric(never)), Observers())


def test_a_cache_is_refused():
    with pytest.raises(ConfigError, match="ModelMetric runs the whole model"):
        rankwise.sweep(small_model(), 1, train=some_data(20, 0), loss=loss, metric=ModelMetric(right), cache=True)


def test_the_base_comes_back_after_an_error(by_forward: SweepState):
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for run in RUNS:
        with (
            pytest.raises(ValueError, match="inside"),
            acting(model, run, by_forward.outcomes[run.name].state, lambda: None),
        ):
            raise ValueError("inside")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())
