"""What a sweep is checked for before anything is written: enough data, and that a first step works."""

from collections.abc import Sequence

from torch import nn

from rankwise.errors import DataError
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.problem import Problem
from rankwise.train.data.tensors import count_rows
from rankwise.train.precheck import check_training


def check_data(model: nn.Module, problem: Problem, candidates: Sequence[Candidate], seed: int) -> None:
    """Check that there are rows enough for intervals, and that one candidate can be trained on them.

    Args:
        model: The base.
        problem: Data, loss and metric.
        candidates: What is tried; the first adapter stands for all.
        seed: Of the run that is checked.

    Raises:
        DataError: There is one row to validate or to test on.
        RankwiseError: Loss, metric or model can't be used.
    """
    for splits in problem.splits.values():
        for what, data in {"validation": splits.validation, "test": splits.test}.items():
            if count_rows(data, what) < 2:
                raise DataError(f"The {what} data has 1 row; give two or more: one row has no interval.")
    one = next((c for c in candidates if c.method == "lora"), candidates[0])
    run = one.run(one.lrs[0], seed)
    data, roles, size = problem.data_of(one.data), (problem.loss, problem.metric), run.training.batch_size
    check_training(model, run.member, *data, *roles, problem.feed, size, problem.inspections, run.start)
