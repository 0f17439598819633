"""Configurations: runs that differ only in their seed, at the best learning rate on validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from rankwise.errors import ConfigError
from rankwise.results.kinds import Method, Status


@dataclass(frozen=True, kw_only=True, eq=False)
class RunScore:
    """One training run, as the rule uses it.

    Args:
        name: The run's name, for example "r8-lr0.001-s0".
        method: "lora", "full", "head" or "base".
        r: Rank; None unless the method is "lora".
        lr: Learning rate; None where nothing is trained.
        seed: The run's seed; runs of one seed met the same data in the same order.
        trainable_parameters: The number of trained parameters.
        validation: Metric of each validation example: 0 or 1 for an accuracy, or a loss.
        configuration: A name that distinguishes configurations beyond method and r; "" where nothing does.
        status: "finished" (by its budget or its own early stopping), or "stopped", "pruned", "diverged", "failed".
        rows: Which rows of the pool the validation rows are, where every seed has its own rows; else None.
    """

    name: str
    method: Method
    r: int | None
    lr: float | None
    seed: int
    trainable_parameters: int
    validation: Shaped[np.ndarray, " n_examples"]
    configuration: str = ""
    status: Status = "finished"
    rows: Int[np.ndarray, " n_examples"] | None = None

    @property
    def configuration_name(self) -> str:
        """The name of its configuration."""
        return configuration_name(self.method, self.r, self.configuration)

    @property
    def counts(self) -> bool:
        """Whether the run trained to its end and its metric is finite."""
        return self.status == "finished" and self.validation.size > 0 and bool(np.isfinite(self.validation).all())


@dataclass(frozen=True, kw_only=True, eq=False)
class Configuration:
    """One configuration at its chosen learning rate.

    Args:
        name: For example "r4" or "full".
        method: As in its runs.
        r: As in its runs.
        lr: The chosen learning rate; None where nothing is trained.
        lr_at_edge_of_grid: The chosen rate is the smallest or largest of several, so a better one may lie outside.
        trainable_parameters: As in its runs.
        runs: Those at the chosen rate that count, by seed; empty when none does.
    """

    name: str
    method: Method
    r: int | None
    lr: float | None
    lr_at_edge_of_grid: bool
    trainable_parameters: int
    runs: tuple[RunScore, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that count."""
        return tuple(run.seed for run in self.runs)

    @property
    def validation_mean(self) -> float | None:
        """Mean of the validation metric over seeds and examples; None without a run that counts."""
        return float(np.mean([run.validation.mean() for run in self.runs])) if self.runs else None

    def validation(self, seeds: Sequence[int]) -> Float[np.ndarray, "n_seeds n_examples"]:
        """The validation metric of these seeds, one row each."""
        by_seed = {run.seed: run.validation for run in self.runs}
        return np.stack([by_seed[seed].astype(np.float64) for seed in seeds])


def configuration_name(method: Method, r: int | None, configuration: str = "") -> str:
    """The name of a configuration: the given one, else method and rank.

    Examples:
        >>> configuration_name("lora", 4), configuration_name("full", None), configuration_name("full", None, "wide")
        ('r4', 'full', 'wide')
    """
    return configuration or (f"r{r}" if method == "lora" else method)


def choose_learning_rates(runs: Iterable[RunScore], higher_is_better: bool) -> list[Configuration]:
    """Take for each configuration the learning rate with the best mean validation metric over seeds.

    A rate at which a seed diverged, was pruned or stopped is only taken when that is so at every rate, and one that
    lacks seeds only when none has more: else a rate would win by the seeds it lost. Equal means go to the smaller rate.

    Args:
        runs: All runs of a sweep, in any order.
        higher_is_better: True for accuracies, False for losses.

    Returns:
        One configuration for each (method, r, configuration), by trainable parameters, then by name. One without any
        run that counts is in the list too, without runs.

    Raises:
        ConfigError: Two configurations have one name, their runs disagree about the trainable parameters, or a run
            is there twice.
    """
    groups: dict[tuple[str, int | None, str], list[RunScore]] = {}
    for run in runs:
        groups.setdefault((run.method, run.r, run.configuration), []).append(run)
    found = [_choose(group[0].configuration_name, group, higher_is_better) for group in groups.values()]
    names = [configuration.name for configuration in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'{names.count(name)} configurations are named "{name}"; give each its own name.')
    return sorted(found, key=lambda configuration: (configuration.trainable_parameters, configuration.name))


def by_configuration(runs: Iterable[RunScore]) -> dict[str, list[RunScore]]:
    """Runs by the name of their configuration."""
    groups: dict[str, list[RunScore]] = {}
    for run in runs:
        groups.setdefault(run.configuration_name, []).append(run)
    return groups


def by_rate(runs: Iterable[RunScore]) -> dict[float | None, list[RunScore]]:
    """Runs of one configuration by their learning rate."""
    rates: dict[float | None, list[RunScore]] = {}
    for run in runs:
        rates.setdefault(run.lr, []).append(run)
    return rates


def merit(lr: float | None, runs: Sequence[RunScore], higher_is_better: bool) -> tuple[bool, int, float, float]:
    """How good a learning rate is; more is better.

    A rate that lost seeds comes after every whole one, then the mean validation metric counts, and of equal ones the
    smaller rate is the better.

    Args:
        lr: The rate.
        runs: The configuration's runs at this rate, one for each seed.
        higher_is_better: True for accuracies, False for losses.
    """
    counted = [run for run in runs if run.counts]
    mean = signed(float(np.mean([run.validation.mean() for run in counted])), higher_is_better) if counted else 0.0
    return len(counted) == len(runs), len(counted), mean, -(lr or 0.0)


def pareto_front(points: Mapping[str, tuple[int, float]], higher_is_better: bool) -> list[str]:
    """Names of the points that no other one beats: as good with fewer parameters, or better with no more.

    Args:
        points: Name -> (trainable parameters, metric).
        higher_is_better: True for accuracies, False for losses.

    Returns:
        The names, in the order given.

    Examples:
        >>> pareto_front({"r1": (1045, 0.87), "r2": (2090, 0.93), "r4": (4180, 0.92)}, higher_is_better=True)
        ['r1', 'r2']
    """
    oriented = {name: (parameters, signed(metric, higher_is_better)) for name, (parameters, metric) in points.items()}
    return [
        name
        for name, (parameters, metric) in oriented.items()
        if not any(p <= parameters and m >= metric and (p, m) != (parameters, metric) for p, m in oriented.values())
    ]


def signed(value: float, higher_is_better: bool) -> float:
    """The value so that more is better.

    Examples:
        >>> signed(0.5, higher_is_better=False)
        -0.5
    """
    return value if higher_is_better else -value


def _choose(name: str, runs: Sequence[RunScore], higher_is_better: bool) -> Configuration:
    parameters = sorted({run.trainable_parameters for run in runs})
    if len(parameters) > 1:
        raise ConfigError(
            f"Runs of {name} train {' and '.join(map(str, parameters))} parameters; a configuration has one number. "
            "Tell them apart by `configuration`."
        )
    by_lr = by_rate(sorted(runs, key=lambda run: run.seed))
    for lr, group in by_lr.items():
        if len({run.seed for run in group}) < len(group):
            raise ConfigError(f"{name} has two runs with lr {lr} and the same seed; each may be there once.")

    chosen = max(by_lr, key=lambda lr: merit(lr, by_lr[lr], higher_is_better))
    grid = sorted(lr for lr in by_lr if lr is not None)
    return Configuration(
        name=name,
        method=runs[0].method,
        r=runs[0].r,
        lr=chosen,
        lr_at_edge_of_grid=len(grid) > 1 and chosen in (grid[0], grid[-1]),
        trainable_parameters=parameters[0],
        runs=tuple(run for run in by_lr[chosen] if run.counts),
    )
