"""Rungs: points of a sweep at which the worst configurations leave, so that the rest trains for less.

Runs are scored as the answer scores them, by the metric of each validation example with the weights kept so far, all
seeds of a configuration together. Then, in each configuration for itself and the baseline alike:

1. Of its learning rates the better half stays, rounded up. A rate that lost a seed (it diverged) leaves while a
   whole one is there. Every configuration keeps at least one rate, so the baseline never leaves.

And among LoRA and head-only configurations that have one rate left:

2. One leaves when another with fewer trainable parameters is better by more than noise: the one-sided 95% bound of the
   paired difference lies above 0.

A learning rate that is tried further, beyond the grid, leaves where an earlier one of its configuration was better
after as many steps.

So the smallest configuration whose mean lies within any tolerance of any reference stays: whatever drives out a
configuration is smaller and has a better mean, so it lies within the tolerance too. And the best mean always stays.
"""

from collections.abc import Iterable, Mapping, Sequence

from rankwise.sweeps.choose.answer import CANDIDATES
from rankwise.sweeps.choose.closeness import difference_bound
from rankwise.sweeps.choose.comparison import Floors, pair
from rankwise.sweeps.choose.configurations import (
    Configuration,
    RunScore,
    by_configuration,
    by_rate,
    choose_learning_rates,
    merit,
)


def worst_runs(scores: Iterable[RunScore], higher_is_better: bool, epochs: int) -> dict[str, str]:
    """Which runs leave at a rung.

    Args:
        scores: All runs on one data set; "finished" those that are still in training or have ended by their own rule.
        higher_is_better: True for accuracies, False for losses.
        epochs: How long they have trained, for the reasons.

    Returns:
        Run -> why it leaves. Runs that have ended already may be among them.

    Examples:
        >>> import numpy as np
        >>> def run(lr, right):
        ...     about = {"method": "lora", "r": 4, "seed": 0, "trainable_parameters": 9}
        ...     return RunScore(name=f"r4-lr{lr}", lr=lr, validation=np.arange(10) < right, **about)
        >>> worst_runs([run(0.1, 5), run(0.2, 7), run(0.3, 6), run(0.4, 1)], higher_is_better=True, epochs=3)
        {'r4-lr0.1': 'at 3 epochs its learning rate was not in the better half of those of r4',
         'r4-lr0.4': 'at 3 epochs its learning rate was not in the better half of those of r4'}
    """
    scores = [run for run in scores if run.status != "pruned"]
    reasons: dict[str, str] = {}
    for name, runs in by_configuration(scores).items():
        for run in _worse_half(runs, higher_is_better):
            reasons[run.name] = f"at {epochs} epochs its learning rate was not in the better half of those of {name}"
    left = [run for run in scores if run.name not in reasons]
    settled = [
        c
        for c in choose_learning_rates(left, higher_is_better)
        if c.method in CANDIDATES and c.runs and len({run.lr for run in left if run.configuration_name == c.name}) == 1
    ]
    for c in settled:
        better = next((other for other in settled if _beats(other, c, higher_is_better)), None)
        if better is not None:
            for run in c.runs:
                reasons[run.name] = f"at {epochs} epochs {better.name} was better with fewer trainable parameters"
    return reasons


def runs_behind(runs: Mapping[str, tuple[str, float, float]], higher_is_better: bool, epochs: int) -> dict[str, str]:
    """Which runs leave at a rung as earlier runs of their configuration were better there.

    Args:
        runs: Run -> its configuration, its metric, and the best metric of earlier runs after as many steps.
        higher_is_better: True for accuracies, False for losses.
        epochs: How long they have trained, for the reasons.

    Returns:
        Run -> why it leaves.

    Examples:
        >>> runs_behind({"r4-lr0.1": ("r4", 0.7, 0.8), "r8-lr0.1": ("r8", 0.8, 0.8)}, True, 2)
        {'r4-lr0.1': 'at 2 epochs an earlier learning rate of r4 was better'}
    """
    sign = 1 if higher_is_better else -1
    return {
        name: f"at {epochs} epochs an earlier learning rate of {configuration} was better"
        for name, (configuration, metric, best) in runs.items()
        if sign * metric < sign * best
    }


def _worse_half(runs: Sequence[RunScore], higher_is_better: bool) -> list[RunScore]:
    rates = by_rate(runs)
    order = sorted(rates, key=lambda lr: merit(lr, rates[lr], higher_is_better), reverse=True)
    complete = [lr for lr in order if all(run.counts for run in rates[lr])]
    half = -(-len(order) // 2)
    stay = (complete or order)[:half]
    return [run for lr in order if lr not in stay for run in rates[lr]]


def _beats(one: Configuration, other: Configuration, higher_is_better: bool) -> bool:
    if one.trainable_parameters >= other.trainable_parameters:
        return False
    paired = pair(one, other, Floors(), higher_is_better)
    return paired is not None and difference_bound(paired.ours, paired.theirs, paired.rotated) > 0
