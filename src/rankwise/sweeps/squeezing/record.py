"""The adapters that were cut, and what to ship, as their part of `results.json`."""

from collections.abc import Mapping

import numpy as np

from rankwise.results.compressed import Compressed, CompressedConfiguration, CompressedRun
from rankwise.results.outcomes import BoundedDifference, MeanInterval
from rankwise.sweeps.choose.configurations import Configuration, signed
from rankwise.sweeps.choose.statistics import interval
from rankwise.sweeps.judged import JudgedSweep, interval_of, mean_of
from rankwise.sweeps.problem import Run, SweepState
from rankwise.sweeps.record import answer_result
from rankwise.sweeps.squeezing.shipping import JudgedShipping
from rankwise.sweeps.squeezing.squeeze import Squeezed


def compressed_results(found: JudgedSweep, squeezed: Squeezed, adapters: Mapping[str, str]) -> Compressed:
    """Build the part of the results.

    Args:
        found: The sweep.
        squeezed: Its adapters, cut.
        adapters: Run -> folder of its adapter, relative to the run directory, as far as they are saved.
    """
    shipping = JudgedShipping(found, squeezed.to_ship, squeezed.trained)
    folders = dict(adapters)
    if adapters:
        folders |= {run.name: f"adapters/{run.name}" for run in squeezed.to_ship.runs}
    answer = shipping.answer
    ship = None if answer is None else answer_result(answer, shipping, folders)
    folder = None if ship is None else ship.adapter
    comparisons = {c.name: comparison for c, comparison in shipping.comparisons}

    def configuration(c: Configuration) -> CompressedConfiguration:
        comparison, smaller = comparisons.get(c.name), squeezed.smaller[c.name]
        runs = [run for run in squeezed.cut.runs if run.configuration == c.name]
        cut = _tests(squeezed.cut, [run.name for run in runs])
        same_size = found.by_name.get(smaller.name)
        names = [] if same_size is None else [run.name for run in same_size.runs]
        return CompressedConfiguration(
            name=c.name,
            label=shipping.labels[c.name],
            trained=squeezed.trained[runs[0].name].configuration,
            same_size=smaller.name,
            r=c.r or 0,
            n_seeds=len(runs),
            parameters=c.trainable_parameters,
            validation_mean=c.validation_mean if squeezed.repaired is None else _validation(squeezed.cut, runs),
            mean=None if cut is None else mean_of(cut),
            interval=None if cut is None else interval_of(cut),
            difference_to_trained=_difference(found, squeezed, c.name, same_size),
            validation_difference_to_reference=None
            if comparison is None
            else BoundedDifference(
                mean=comparison.mean, lower_bound=comparison.lower_bound, upper_bound=comparison.upper_bound
            ),
            p_within=None if comparison is None else comparison.p_within,
            state=None if comparison is None else comparison.state,
            is_answer=answer is not None and answer.verdict != "undecided" and answer.name == c.name,
            repaired=_with_interval(squeezed.repaired, [run.name for run in runs]),
            trained_longer=_with_interval(squeezed.longer, names),
            runs=[
                CompressedRun(
                    name=run.name,
                    trained=squeezed.trained[run.name].name,
                    validation_metric=_mean(squeezed.to_ship, run.name, "validation"),
                    metric=_mean(squeezed.to_ship, run.name, "test"),
                    adapter=folder if folder == folders.get(run.name) else None,
                )
                for run in runs
            ],
        )

    order = [*dict.fromkeys(run.configuration for run in squeezed.cut.runs)]
    configurations = sorted(shipping.compressed, key=lambda c: order.index(c.name))
    return Compressed(steps=squeezed.steps, configurations=[configuration(c) for c in configurations], ship=ship)


def shipped_folder(compressed: Compressed | None) -> dict[str, str]:
    """Return the name of the cut adapter to ship and its folder; nothing where a trained one is to be shipped."""
    configurations = [] if compressed is None else compressed.configurations
    return {run.name: run.adapter for c in configurations for run in c.runs if run.adapter is not None}


def _mean(of: SweepState, run: str, what: str) -> float | None:
    return mean_of(getattr(of.scores[run], what)) if run in of.scores else None


def _validation(of: SweepState, runs: list[Run]) -> float | None:
    values = [of.scores[run.name].validation.mean() for run in runs if run.name in of.scores]
    return mean_of(np.array(values)) if values else None


def _tests(of: SweepState | None, names: list[str]) -> np.ndarray | None:
    """Test metrics of runs, a row each; None where there are none, or one is not finite."""
    values = [] if of is None else [of.scores[name].test for name in names if name in of.scores]
    rows = np.stack(values) if values else np.empty((0, 0))
    return rows if rows.size and np.isfinite(rows).all() else None


def _with_interval(of: SweepState | None, names: list[str]) -> MeanInterval | None:
    values = _tests(of, names)
    return None if values is None else MeanInterval(mean=mean_of(values), interval=interval_of(values))


def _difference(
    found: JudgedSweep, squeezed: Squeezed, name: str, same_size: Configuration | None
) -> MeanInterval | None:
    """A cut configuration minus the one trained at its rank, on test data, by seed."""
    trained = {} if same_size is None else {run.seed: run.name for run in same_size.runs}
    pairs = [
        (squeezed.cut.scores[run.name].test, found.swept.scores[trained[run.member.seed]].test)
        for run in squeezed.cut.runs
        if run.configuration == name and run.name in squeezed.cut.scores and run.member.seed in trained
    ]
    if not pairs:
        return None
    rows = np.stack([ours.astype(np.float64) - theirs for ours, theirs in pairs])
    if not np.isfinite(rows).all():
        return None
    rows = signed(1.0, found.problem.higher_is_better) * rows
    return MeanInterval(mean=float(rows.mean()), interval=interval(rows))
