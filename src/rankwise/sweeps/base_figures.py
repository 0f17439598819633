"""Figures of the base before fine-tuning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from rankwise.errors import ConfigError
from rankwise.results.origin import BaseInfo
from rankwise.sweeps.measure import measure_base
from rankwise.sweeps.plan.plan import fingerprint
from rankwise.sweeps.problem import Problem
from rankwise.sweeps.storage.same_problem import LOSS, first_loss


@dataclass(frozen=True)
class BaseFigures:
    """Checksum and figures of the base.

    Args:
        sha256: Of its weights.
        parameters: How many numbers it has.
        tests: Metrics on test data by name, the one that decides first.
        validation: The metric on validation data.
        loss: The loss on the first training rows.
    """

    sha256: str
    parameters: int
    tests: Mapping[str, float]
    validation: float
    loss: float

    @property
    def planned(self) -> dict[str, float]:
        """Loss and validation metric, by which a longer sweep knows that its problem is the same."""
        return {LOSS: self.loss, "validation metric": self.validation}

    @property
    def all(self) -> dict[str, float]:
        """Every figure, by which a resumed run knows that its problem is the same."""
        return self.planned | {f"test {name}": value for name, value in self.tests.items()}

    def info(self, name: str, metric_name: str, *, has_metric: bool) -> BaseInfo:
        """The base as the results have it.

        Args:
            name: What the base is called.
            metric_name: The metric that decides.
            has_metric: False where the base can't do the task, having a head that is not trained yet.
        """
        tests = dict(self.tests) if has_metric else {}
        return BaseInfo(
            name=name,
            sha256=self.sha256,
            parameters=self.parameters,
            metric=tests.pop(metric_name, None),
            validation_metric=self.validation,
            others=tests,
        )

    def untouched(self, model: nn.Module, problem: Problem, which: str) -> str:
        """Check by its checksum and metrics that training has not changed the base."""
        same = fingerprint(model.state_dict()) == self.sha256 and _tests(model, problem, which) == self.tests
        if same:
            return "With the adapter off the base is what it was, bit for bit."
        return "The base has changed in training: this is a fault of the program, please report it."


def measure_figures(model: nn.Module, problem: Problem, which: str) -> BaseFigures:
    """Measure the base.

    Args:
        model: The base.
        problem: Data, loss and metric.
        which: The splits that the answer is about.

    Raises:
        ConfigError: The metric is not a number on the base.
    """
    splits = problem.splits[which]
    tests = _tests(model, problem, which)
    validation = measure_base(model, problem, splits.validation)
    values = [*tests.values(), validation]
    if not all(map(math.isfinite, values)):
        raise ConfigError(
            f"The {problem.metric_name} is not finite on the base: {values}. It must be a number on every row of the "
            "validation and test data."
        )
    return BaseFigures(
        sha256=fingerprint(model.state_dict()),
        parameters=sum(p.numel() for p in model.parameters()),
        tests=tests,
        validation=validation,
        loss=first_loss(model, problem, splits),
    )


def _tests(model: nn.Module, problem: Problem, which: str) -> dict[str, float]:
    tests = {problem.metric_name: problem.splits[which].test, **problem.other_tests}
    return {name: measure_base(model, problem, data) for name, data in tests.items()}
