"""Metrics of finished runs, example by example, and of the base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.lora.base.modes import in_eval
from rankwise.pack.batches import lazily, selected
from rankwise.pack.faults import attempted, in_words
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from rankwise.sweeps.attaching import acting
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.sweeps.problem import Problem, Run, Scores, SweepState
from rankwise.train.data.tensors import Data
from rankwise.train.evaluation import evaluate_rows, in_parts

TEST = ""
"""The name of the problem's own test data among others."""


def measure(model: nn.Module, runs: Sequence[Run], problem: Problem, swept: SweepState, *, tests: bool = True) -> None:
    """Score the finished runs of a pack; `tests` says whether to read test data. A run on which the loss or the metric
    raises an error has failed.

    Where the metric needs the model itself, runs take their turns: rows pass in batches as large as fit, so that more
    adapters at a time would not save a pass.
    """
    finished = [run for run in runs if run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"]
    if not finished:
        return
    states = {run.name: swept.outcomes[run.name].state for run in finished}
    pack = _pack(model, finished, states, problem)
    batch_size = finished[0].training.batch_size
    loss = PerAdapter(problem.loss, "loss", piece=batch_size, spare=True)
    metric = PerAdapter(problem.metric, "metric", spare=True)
    pack.step_rows = problem.feed.rows_a_pass or batch_size
    data, feed = problem.splits[finished[0].data], problem.feed
    of_model = problem.model_metric is not None
    read = {TEST: data.test, **problem.other_tests} if tests else {}
    with pack.attached(_example(data.validation, problem), training=False):
        losses, validation = _validation_rows(pack, finished[0].data, problem, [loss, metric])
        tested = {name: evaluate_rows(pack, d, [metric], feed)[0] for name, d in read.items() if not of_model}
    swept.note([*loss.notes, *metric.notes])
    by_name = {run.name: run for run in finished}
    failed = {**loss.failed, **metric.failed}
    for k, name in enumerate(member.member.name for member in pack.members):
        run, outcome = by_name[name], swept.outcomes[name]
        rows = {test: _numpy(values[k]) for test, values in tested.items()}
        values, deciding = _numpy(validation[k]), outcome.deciding
        if problem.model_metric is not None and k not in failed:
            found = attempted(partial(_of_model, model, run, outcome.state, problem, problem.model_metric, read))
            if not isinstance(found, Exception):
                values, rows = found
            elif len(failed) == len(finished) - 1 > 0:  # on all of several
                raise found
            else:
                failed[k] = in_words("metric", found)
            deciding = None  # of the loss: nothing was chosen by the metric on these rows
        if k in failed:
            swept.outcomes[name] = replace(outcome, status="failed", reason=f"{failed[k]}, after training")
            continue
        swept.scores[name] = Scores(
            values,
            float(losses[k].mean()),
            rows.pop(TEST, np.empty(0)),
            rows,
            deciding=deciding,
            rows=problem.cut_rows(run),
            losses=_numpy(losses[k]) if loss.by_row and (of_model or problem.metric is not problem.loss) else None,
        )


def _of_model(
    model: nn.Module, run: Run, state: AdapterState, problem: Problem, metric: ModelMetric, tests: Mapping[str, Data]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A metric that needs the model, of one run: on its validation data, and on test data by name."""
    feed = problem.feed
    example = _example(problem.splits[run.data].validation, problem)
    with acting(model, run, state, lambda: feed.call(model, example)):
        validation = metric.rows(model, problem.validation_of(run))
        return validation, {name: metric.rows(model, data) for name, data in tests.items()}


def validate(
    model: nn.Module, runs: Sequence[Run], states: Mapping[str, AdapterState], problem: Problem
) -> dict[str, np.ndarray]:
    """The metric of each validation example by run; all runs of one pack."""
    pack = _pack(model, runs, states, problem)
    data = runs[0].data
    with pack.attached(_example(problem.splits[data].validation, problem), training=False):
        (values,) = _validation_rows(pack, data, problem, [PerAdapter(problem.metric, "metric", spare=True)])
    return {member.member.name: _numpy(values[k]) for k, member in enumerate(pack.members)}


def _validation_rows(pack: Pack, data: str, problem: Problem, functions: Sequence[PerAdapter]) -> list[Tensor]:
    """Values of each function for every adapter on the rows on which its seed validates: (K, n) each."""
    rotation = problem.rotation_of(data)
    if rotation is None:
        return evaluate_rows(pack, problem.splits[data].validation, functions, problem.feed)
    rows = torch.stack([rotation.cut(seed).validation for seed in pack.seeds])
    return evaluate_rows(pack, rotation.pool, functions, problem.feed, rows)


def _pack(model: nn.Module, runs: Sequence[Run], states: Mapping[str, AdapterState], problem: Problem) -> Pack:
    members = [run.member for run in runs]
    feed = problem.feed
    return Pack(
        model,
        members,
        problem.loss,
        # What is frozen is in a run's start where it doesn't follow from its settings.
        states={run.name: {**run.start, **states[run.name]} for run in runs},
        call=feed.call,
        precision=feed.precision,
        inspections=problem.inspections,
    )


def _example(data: Data, problem: Problem) -> Data:
    return problem.feed.example_of(data)


def _numpy(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def measure_base(model: nn.Module, problem: Problem, data: Data) -> float:
    """The metric of the model as it is."""
    return float(base_rows(model, problem, data).mean())


@torch.no_grad()
def base_rows(model: nn.Module, problem: Problem, data: Data, function: PerAdapter | None = None) -> np.ndarray:
    """The metric of the model as it is, row by row, as `rankwise.train.evaluation.evaluate_rows` gives it.

    Args:
        model: The base.
        problem: Its metric, and how data reach the model.
        data: The rows.
        function: Measured in place of the metric.
    """
    if function is None and problem.model_metric is not None:
        return problem.model_metric.rows(model, data)
    feed, device = problem.feed, next(model.parameters()).device
    role = "loss" if problem.metric is problem.loss else "metric"
    metric, one = function or PerAdapter(problem.metric, role), Groups([0], 1, device)

    def run(rows: Tensor) -> tuple[Tensor, Tensor | None]:
        batch = feed.prepare(selected(data, rows))
        outputs = feed.call(model, batch)
        return metric.rows(outputs.unsqueeze(0), lazily(batch, lambda t: t.unsqueeze(0)), one)

    order = feed.evaluation_order(data)
    with in_eval(model):
        found = in_parts(order.to(device), feed.rows_at_once, run, piece=metric.piece)
    return _numpy(metric.joined(found)[0, order.argsort().to(device)])
