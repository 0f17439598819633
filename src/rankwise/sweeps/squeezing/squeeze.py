"""Cut the trained adapters of a sweep to smaller ranks, and score them exactly as trained ones are."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from rankwise.pack.resolved import AdapterState, resolve
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.judged import JudgedSweep
from rankwise.sweeps.measure import measure
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.squeezing.cuts import cuts_of
from rankwise.sweeps.squeezing.cutting import cut_state
from rankwise.train.outcome import Outcome


@dataclass
class Squeezed:
    """The trained adapters of a sweep, cut to smaller ranks.

    Args:
        cut: The smaller adapters, as runs.
        trained: Name of such a run -> the run that trained it.
        smaller: Name of a configuration of theirs -> the configuration that is trained at the smaller rank.
        steps: Steps of further training; None where there was none.
        repaired: The smaller adapters after these steps, under the same names.
        longer: Adapters trained at the smaller ranks, after as many further steps.
        unread: Names of runs that were not cut, as their adapters are there no more.
    """

    cut: SweepState
    trained: dict[str, Run]
    smaller: dict[str, Candidate]
    steps: int | None = None
    repaired: SweepState | None = None
    longer: SweepState | None = None
    unread: list[str] = field(default_factory=list[str])

    @property
    def to_ship(self) -> SweepState:
        """Those that may be shipped: repaired ones, where there are any."""
        return self.repaired or self.cut


def squeeze(
    model: nn.Module,
    judged: JudgedSweep,
    candidates: Sequence[Candidate],
    stored: Callable[[Run], AdapterState | None],
) -> Squeezed:
    """Cut the adapters of the largest rank trained to every smaller rank, and score them on validation and test data.

    Args:
        model: The base; it is as before afterwards.
        judged: The sweep, with its learning rates chosen.
        candidates: All of the sweep.
        stored: The tensors of a run that an earlier sweep trained; None where they are there no more.

    Returns:
        The smaller adapters, if there are any.
    """
    swept = judged.swept
    runs = {run.name: run for run in swept.runs}
    able = {c.name: [runs[run.name] for run in c.runs] for c in judged.able if c.method == "lora"}
    cut = SweepState([], {}, complete=True)
    found = Squeezed(cut, {}, {})
    for one in cuts_of(candidates, able):
        for trained in able[one.trained.name]:
            state = swept.outcomes[trained.name].state or stored(trained)
            if state is None:
                found.unread.append(trained.name)
                continue
            smaller = [one.run(trained, candidate) for candidate in one.smaller]
            states = cut_state(model, trained.member, state, [s.member for s in smaller])
            for run, candidate, its_state in zip(smaller, one.smaller, states or [], strict=False):
                _add(cut, run, its_state, swept.outcomes[trained.name])
                found.trained[run.name], found.smaller[run.configuration] = trained, candidate
    cut.parameters = {run.name: resolve(model, run.member).parameter_count() for run in cut.runs}
    score(model, cut, judged.problem, most_at_once(swept))
    return found


def _add(to: SweepState, run: Run, state: AdapterState, trained: Outcome) -> None:
    to.runs = [*to.runs, run]
    to.outcomes[run.name] = replace(trained, name=run.name, state=state, deciding=None, seconds=0.0)


def most_at_once(swept: SweepState) -> int:
    """Adapters of the sweep's largest pack: as many trained together, so as many can be scored together."""
    return max(Counter(swept.packs.values()).values(), default=1)


def score(model: nn.Module, of: SweepState, problem: Problem, most: int) -> None:
    """Score runs on validation and test data, some at a time."""
    problem = replace(problem, other_tests={})
    for part in sharing_packs(of.runs, most):
        measure(model, part, problem, of)


def sharing_packs(runs: Sequence[Run], most: int) -> Iterator[list[Run]]:
    """Runs that can share a pack, so many at most."""
    groups: Mapping[tuple[str, int, object], list[Run]] = {}
    for run in runs:
        key = run.data, run.training.batch_size, type(run.member.optimiser)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        yield from (group[i : i + most] for i in range(0, len(group), most))
