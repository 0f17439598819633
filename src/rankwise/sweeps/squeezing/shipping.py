"""Which adapter to ship: the rule of the answer, over trained adapters and those cut to smaller ranks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from rankwise.sweeps.choose.answer import Answer, decide
from rankwise.sweeps.choose.comparison import Comparison, both_ways, compare_with_reference
from rankwise.sweeps.choose.configurations import Configuration, RunScore
from rankwise.sweeps.judged import JudgedSweep
from rankwise.sweeps.problem import Run, SweepState


class JudgedShipping(JudgedSweep):
    """A sweep judged together with the adapters that were cut.

    A cut adapter has the weights of the epoch that was the best for the larger one on all validation rows, which
    flatters it there. So it is compared twice with the reference, and both must agree: as it is, with the reference's
    saved weights, chosen on these rows as well; and less what choosing the epoch has added to the larger adapter on
    each row, with the reference's cross-fitted values, which decide between trained ones.

    Args:
        trained: The sweep.
        compressed: The adapters that were cut.
        larger: Name of such an adapter -> the run that trained it.
    """

    def __init__(self, trained: JudgedSweep, compressed: SweepState, larger: Mapping[str, Run]) -> None:
        names, swept = {run.configuration for run in compressed.runs}, trained.swept
        together = SweepState(
            [*swept.runs, *compressed.runs],
            {**swept.parameters, **compressed.parameters},
            outcomes={**swept.outcomes, **compressed.outcomes},
            scores={**swept.scores, **compressed.scores},
            complete=swept.complete,
        )
        comparable = trained.choice.comparable
        choice = replace(trained.choice, comparable=None if comparable is None else [*comparable, *names])
        super().__init__(together, trained.problem, trained.rule, choice)
        self._trained, self._larger = trained, larger
        self.compressed = [c for c in self.chosen if c.name in names]
        """The configurations that were cut, the smallest first."""

    @cached_property
    def reference(self) -> Configuration | None:
        """The reference of the sweep."""
        known = self._trained.reference
        return None if known is None else self.by_name[known.name]

    @cached_property
    def comparisons(self) -> list[tuple[Configuration, Comparison]]:
        """Each cut configuration with its comparison."""
        reference, rule, floors = self.reference, self.rule, self.choice.floors
        if reference is None:
            return []
        scores = self.swept.scores
        saved = _with(reference, lambda run: scores[run.name].validation)
        found: list[tuple[Configuration, Comparison]] = []
        for c in (c for c in self.compressed if c.runs):
            as_it_is = compare_with_reference(c, saved, rule, floors)
            corrected = compare_with_reference(_with(c, self._corrected), reference, rule, floors)
            if as_it_is is not None and corrected is not None:
                found.append((c, both_ways(corrected, as_it_is)))
        return found

    def _corrected(self, run: RunScore) -> np.ndarray:
        """A cut adapter's metric of each row, less what the choice of the epoch has added to the larger one's."""
        larger = self.swept.scores[self._larger[run.name].name]
        return run.validation.astype(np.float64) + larger.decisive - larger.validation

    @cached_property
    def answer(self) -> Answer | None:
        """What to ship."""
        if self.reference is None:
            return None
        trained = [c for c in self.able if c not in self.compressed]
        return decide(trained, self.reference, self.rule, self.choice.floors, self.choice.path, self.comparisons)


def _with(c: Configuration, values: Callable[[RunScore], np.ndarray]) -> Configuration:
    """A configuration with other metrics of its validation rows."""
    return replace(c, runs=tuple(replace(run, validation=values(run)) for run in c.runs))
