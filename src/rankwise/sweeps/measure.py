"""Metrics of finished runs, example by example, and of the base."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.pack.losses import PerAdapter
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import State
from rankwise.sweeps.problem import Problem, Run, Scores, Swept
from rankwise.train.data import Data, pick
from rankwise.train.evaluation import evaluate_rows


def measure(model: nn.Module, runs: Sequence[Run], problem: Problem, swept: Swept) -> None:
    """Take the scores of those runs of a pack that finished, test data included."""
    finished = [run for run in runs if run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"]
    if not finished:
        return
    states = {run.name: swept.outcomes[run.name].state for run in finished}
    pack = Pack(model, [run.member for run in finished], problem.loss, states=states)
    loss, metric = PerAdapter(problem.loss, "loss"), PerAdapter(problem.metric, "metric")
    data = problem.splits[finished[0].data]
    with pack.attached(pick(data.validation, lambda t: t[:2]), training=False):
        losses, validation = evaluate_rows(pack, data.validation, [loss, metric])
        (test,) = evaluate_rows(pack, data.test, [metric])
        other = {name: evaluate_rows(pack, rows, [metric])[0] for name, rows in problem.other_tests.items()}
    swept.notes.extend(note for note in [*loss.notes, *metric.notes] if note not in swept.notes)
    for k, member in enumerate(pack.members):
        swept.scores[member.member.name] = Scores(
            _numpy(validation[k]),
            float(losses[k].mean()),
            _numpy(test[k]),
            {name: _numpy(values[k]) for name, values in other.items()},
        )


def validate(
    model: nn.Module, runs: Sequence[Run], states: Mapping[str, State], problem: Problem
) -> dict[str, np.ndarray]:
    """The metric of each validation example by run; all runs of one pack."""
    pack = Pack(model, [run.member for run in runs], problem.loss, states=states)
    data = problem.splits[runs[0].data].validation
    with pack.attached(pick(data, lambda t: t[:2]), training=False):
        (values,) = evaluate_rows(pack, data, [PerAdapter(problem.metric, "metric")])
    return {member.member.name: _numpy(values[k]) for k, member in enumerate(pack.members)}


def _numpy(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


@torch.no_grad()
def measure_base(model: nn.Module, problem: Problem, data: Data) -> float:
    """The metric of the model as it is."""
    was_training = model.training
    outputs = model.eval()(data[0])
    model.train(was_training)
    got = problem.metric(outputs, data)
    return float(got.mean() if isinstance(got, Tensor) else got[0].sum() / got[1].sum())
