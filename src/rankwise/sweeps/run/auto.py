"""The adaptive plan: learning rates at a middle size and the reference, then sizes by bisection, seeds as needed.

Runs share packs where that is cheap: where a further adapter costs little more than the first, all sizes train with the
starting seeds, and with each further seed those that are open and can still be the answer; the path is followed through
what is there already. Otherwise only the path's own runs train.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from rankwise.pack.resolved import resolve
from rankwise.sweeps.candidates.ladders import ladders_of
from rankwise.sweeps.choose.adaptive import STARTING_SEEDS, Ladder, neighbour_rates, next_step, step_sentences
from rankwise.sweeps.choose.answer import CANDIDATES
from rankwise.sweeps.choose.closeness import difference_bound
from rankwise.sweeps.choose.comparison import Comparison, Floors, compare_with_reference, pair
from rankwise.sweeps.choose.configurations import Configuration, choose_learning_rates, signed
from rankwise.sweeps.choose.rule import Rule
from rankwise.sweeps.problem import Run, SweepState
from rankwise.sweeps.run.stage import Phases, PlannedStage, StageResult

if TYPE_CHECKING:
    from rankwise.sweeps.run.stages import Stages

SEARCH_SEED = 10_007
"""The seed of the learning-rate search; it never decides."""

CHEAP = 0.35
"""Where a further adapter costs less than this share of the first, all sizes train together."""

GAIN_SEEDS = 6
"""Seeds after which the plan ends if no gain is shown."""

SEEDS_AT_ONCE = 4
"""Seeds that may be added in one step."""


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Settings of the adaptive plan.

    Args:
        rule: Tolerance and confidence.
        floors: The floors that fine-tuning must beat.
        comparable: Configurations that can be reference or answer; None for all.
        curve: Whether every size is trained, at least with the starting seeds, once the decision is made; None does
            where a further adapter is cheap.
        max_runs: The most training runs, including the learning-rate search; None for no limit.
        max_minutes: After this many minutes the plan starts only the first comparison; None for no limit.
        max_parameters: Larger sizes are left out; None for no limit.
        price: What a further adapter in a pack costs, as a share of the first; None to measure it.
    """

    rule: Rule
    floors: Floors
    comparable: Sequence[str] | None = None
    curve: bool | None = None
    max_runs: int | None = None
    max_minutes: float | None = None
    max_parameters: int | None = None
    price: float | None = None


@dataclass
class Walk:
    """An adaptive plan under way.

    Args:
        stages: The stages of the sweep.
        auto: The settings.
    """

    stages: "Stages"
    auto: Auto
    swept: SweepState | None = None
    searched: int = 0
    path: list[str] = field(default_factory=list[str])
    curve: bool = False
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        stages = self.stages
        seed = stages.seeds[0]
        self.candidates = {c.name: c for c in stages.candidates}
        self.parameters = {
            c.name: resolve(stages.model, c.run(c.lrs[0], seed).member).parameter_count() for c in stages.candidates
        }
        able = [c for c in stages.candidates if self.auto.comparable is None or c.name in self.auto.comparable]
        fulls = [c for c in able if c.method == "full"]
        pool = fulls[-1:] or sorted(able, key=lambda c: self.parameters[c.name])[-1:]
        self.reference = pool[0]
        limit = self.auto.max_parameters or self.parameters[self.reference.name]
        sized = [
            c
            for c in able
            if c.method in CANDIDATES
            and c is not self.reference
            and self.parameters[c.name] < self.parameters[self.reference.name]
            and self.parameters[c.name] <= limit
        ]
        self.ladders = ladders_of(sorted(sized, key=lambda c: (self.parameters[c.name], c.name)))
        on_ladders = {name for ladder in self.ladders for name in ladder.names} | {self.reference.name}
        self.off_ladder = [c for c in stages.candidates if c.name not in on_ladders]
        self.rates, self.found = dict[str, float](), dict[str, float]()

    def phases(self) -> Phases[StageResult]:
        """Search for rates, follow the ladders, complete the curve.

        Raises:
            KeyboardInterrupt: Interrupted while learning rates were searched.
        """
        edges, told = yield from self._search()
        if not self.ladders:
            off_ladder = dict.fromkeys((c.name for c in self.off_ladder), self._starting)
            yield from self._train({self.reference.name: self._starting}, off_ladder)
        cheap = self._cheap()
        self.curve = cheap if self.auto.curve is None else self.auto.curve
        for ladder in self.ladders:
            yield from self._follow(ladder, cheap)
            if self._stopped or self._nothing_gained():
                break
        if self.curve and not self._stopped:
            yield from self._complete_curve()
        swept = self.swept or SweepState((), {}, complete=True)
        if swept.complete:
            swept.note([self._saved()])
        order = list(self.candidates)
        swept.runs = sorted(swept.runs, key=lambda run: (order.index(run.configuration), run.training.lr, run.name))
        path = tuple(name for name in self.path if not self._lost(name))
        # A neighbour that did better is none of those that the search tried last.
        edges = {name: edge for name, edge in edges.items() if self.rates[name] == self.found[name]}
        return StageResult(swept, edges, told, path, self.reference.name, dict(self.rates))

    def expected(self) -> list[PlannedStage]:
        """The first stages: the search, and the reference with the middle size; what follows depends on them."""
        middles = [self.candidates[ladder.middle] for ladder in self.ladders]
        first = [*middles, self.reference]
        runs = [c.run(c.lrs[0], seed) for c in first for seed in self.stages.seeds[: self._starting]]
        several = [c for c in first if len(c.lrs) > 1]
        found = [PlannedStage("training", runs, ())]
        if several:
            search, rungs = self.stages.searching(several, SEARCH_SEED)
            found.insert(0, PlannedStage("search", search, rungs, tests=False))
        return found

    @property
    def _starting(self) -> int:
        return min(STARTING_SEEDS, len(self.stages.seeds))

    @property
    def _stopped(self) -> bool:
        return self.swept is not None and not self.swept.complete

    def _search(self) -> Phases[tuple[dict[str, bool], list[dict[str, object]]]]:
        """Find learning rates at each ladder's middle, the reference, and every kind with its own rates."""
        middles = [self.candidates[ladder.middle] for ladder in self.ladders]
        heads = [c for ladder in self.ladders for n in ladder.names if (c := self.candidates[n]).method == "head"]
        chosen = list({c.name: c for c in [*middles, *heads, self.reference]}.values())
        several = [c for c in chosen if len(c.lrs) > 1]
        edges: dict[str, bool] = {}
        told: list[dict[str, object]] = []
        found: Mapping[str, float] = {}
        if several:
            self.stages.observers.message(
                f"Searching for learning rates at {', '.join(c.label for c in several)}; the others take theirs from "
                "them."
            )
            # A reference that is too weak makes adapters look good.
            further = (self.reference.name,) if self._one_more() else ()
            found, edges, told = yield from self.stages.search_rates(several, SEARCH_SEED, further)
            self.searched = len(told)
        self.rates = {c.name: found.get(c.name, c.lrs[0]) for c in chosen}
        for ladder in self.ladders:
            for name in ladder.names:
                self.rates.setdefault(name, self.rates[ladder.middle])
                edges.setdefault(name, edges.get(ladder.middle, False))
        self.found = dict(self.rates)
        largest = self.rates[self.ladders[-1].middle] if self.ladders else None
        for c in self.off_ladder:
            self.rates[c.name] = largest if c.method == "lora" and largest is not None else c.lrs[0]
        return edges, told

    def _one_more(self) -> bool:
        """Whether the runs allowed are more than the first comparison takes."""
        return self.auto.max_runs is None or self.auto.max_runs > sum(len(s.runs) for s in self.expected())

    def _cheap(self) -> bool:
        """Whether all sizes train together."""
        names = [name for ladder in self.ladders for name in ladder.names if self.candidates[name].method == "lora"]
        if len(names) < 3:
            return False
        price = self.auto.price
        if price is None:
            seed = self.stages.seeds[0]
            runs = [self.candidates[name].run(self.rates[name], seed) for name in names[:4]]
            price = self.stages.measured_price(runs)
        cheap = price < CHEAP
        self.stages.observers.message(
            f"A further adapter costs {100 * price:.0f}% of the first, so "
            + ("all sizes train together." if cheap else "sizes are tried one after another, by bisection.")
        )
        return cheap

    def _follow(self, ladder: Ladder, cheap: bool) -> Phases[None]:
        """Take steps on a ladder until it ends."""
        neighbours = set[str]()
        together = [*ladder.names, *(c.name for c in self.off_ladder if self.curve)] if cheap else []
        start = self._starting
        both = dict.fromkeys([self.reference.name, ladder.middle], start)
        going = yield from self._train(both, dict.fromkeys(together, start))
        while going and not self._stopped:
            if self._nothing_gained():
                n = self._asked(self.reference.name)
                if n >= min(GAIN_SEEDS, len(self.stages.seeds)):
                    return
                going = yield from self._train({self.reference.name: n + 1, ladder.middle: n + 1})
                continue
            step = next_step(
                ladder,
                self._compared,
                most_seeds=len(self.stages.seeds),
                neighbours_tried=neighbours.__contains__,
                at_once=SEEDS_AT_ONCE if cheap else 1,
            )
            self.path = [*dict.fromkeys([*self.path, *step.path])]
            if step.kind == "end":
                return
            early = self._missing({}, self._at_neighbours(step.foreseen, ladder)) if cheap else []
            step = replace(step, in_play=step.in_play if cheap else (), foreseen=step.foreseen if early else "")
            # A neighbouring rate that was foreseen has trained by now.
            if step.kind != "neighbour" or self._missing({}, self._at_neighbours(step.name, ladder)):
                self.stages.observers.message(step_sentences(step, self._compared, self._label))
            if step.kind == "neighbour":
                neighbours.add(step.name)
                going = yield from self._try_neighbour(step.name, ladder, at_once=cheap)
                continue
            beside = dict.fromkeys(step.in_play, step.seeds)
            wanted = {step.name: step.seeds, self.reference.name: step.seeds}
            going = yield from self._train(wanted, beside, early)

    def _label(self, name: str) -> str:
        return (self.candidates[name] if name else self.reference).label

    def _neighbour_rates(self, name: str, ladder: Ladder) -> list[float]:
        lower = self._lost(name) or ladder.names.index(name) < ladder.names.index(ladder.middle)
        return neighbour_rates([self.rates[name]], self.candidates[name].lrs, lower)

    def _at_neighbours(self, name: str, ladder: Ladder) -> list[Run]:
        """Runs of a configuration at a neighbouring learning rate with the starting seeds; none of ""."""
        rates, seeds = self._neighbour_rates(name, ladder) if name else [], self.stages.seeds[: self._starting]
        return [self.candidates[name].run(lr, seed) for lr in rates for seed in seeds]

    def _try_neighbour(self, name: str, ladder: Ladder, *, at_once: bool) -> Phases[bool]:
        """Train a configuration at a neighbouring learning rate, and take that where it does better with the same
        seeds; False where the budgets don't allow it.

        Args:
            name: The configuration.
            ladder: Its ladder.
            at_once: Whether all starting seeds train together; else a first seed that does no better ends the try.
        """
        before, lost, going, better = self.rates[name], self._lost(name), True, False
        for lr in self._neighbour_rates(name, ladder):
            # A rate that lost a seed is no measure for another.
            for n in (self._starting,) if at_once or lost else dict.fromkeys((1, self._starting)):
                self.rates[name] = before
                old = self._mean(name, n)
                self.rates[name] = lr
                going = yield from self._train({name: n})
                new = self._mean(name, n)
                better = new is not None and (old is None or signed(new - old, self.auto.rule.higher_is_better) > 0)
                if not (going and better):
                    break
            if not better:
                self.rates[name] = before
            if not going:
                return False
        return True

    def _mean(self, name: str, n: int) -> float | None:
        """The mean over the first n seeds; None where one of them has no run that counts."""
        c = self._chosen().get(name)
        first = self.stages.seeds[:n]
        if c is None or not {*first} <= {*c.seeds}:
            return None
        return float(np.mean([run.validation.mean() for run in c.runs if run.seed in first]))

    def _missing(self, wanted: Mapping[str, int], further: Sequence[Run] = ()) -> list[Run]:
        """Runs of these configurations with this many seeds, and further ones, that have not been trained."""
        known = set() if self.swept is None else {run.name for run in self.swept.runs}
        runs = [
            self.candidates[name].run(self.rates[name], seed)
            for name, n in wanted.items()
            for seed in self.stages.seeds[:n]
        ]
        return [run for run in [*runs, *further] if run.name not in known]

    def _train(
        self, wanted: Mapping[str, int], beside: Mapping[str, int] | None = None, further: Sequence[Run] = ()
    ) -> Phases[bool]:
        """Train what is missing of these configurations with so many seeds, and of others, and further runs, as far as
        the budgets allow; False where they don't even allow the first."""
        runs, more = self._missing(wanted), self._missing({**wanted, **(beside or {})}, further)
        over = self._over(len(runs))
        if over is not None:
            if self.swept is not None:
                label = self.candidates[next(iter(wanted))].label
                self.swept.note([why := f"The plan ended after {over}, before {label} was decided."])
                self.stages.observers.message(why)
            return False
        yield from self._add(runs if self._over(len(more)) is not None else more)
        return True

    def _add(self, runs: Sequence[Run]) -> Phases[None]:
        if not runs:
            return
        more = yield from self.stages.train(runs)
        if self.swept is None:
            self.swept = more
        else:
            self.swept.add(more)

    def _chosen(self) -> dict[str, Configuration]:
        swept = self.swept
        if swept is None:
            return {}
        scores = [swept.score(run) for run in swept.runs if run.training.lr == self.rates[run.configuration]]
        return {c.name: c for c in choose_learning_rates(scores, self.auto.rule.higher_is_better)}

    def _asked(self, name: str) -> int:
        """Seeds with which a configuration was trained at its learning rate, those that diverged among them."""
        runs = [] if self.swept is None else self.swept.runs
        return len({r.member.seed for r in runs if r.configuration == name and r.training.lr == self.rates[name]})

    def _lost(self, name: str) -> bool:
        """Whether a seed of a configuration failed at its learning rate: it then can't be the answer."""
        c = self._chosen().get(name)
        return c is not None and len(c.runs) < self._asked(name)

    def _compared(self, name: str) -> Comparison | None:
        chosen, asked = self._chosen(), self._asked(name)
        reference = chosen.get(self.reference.name)
        if name not in chosen or reference is None:
            return None
        found = compare_with_reference(chosen[name], reference, self.auto.rule, self.auto.floors)
        if self._lost(name) or found is None:
            return Comparison(name, float("-inf"), None, None, 0.0, asked, "not", 0)
        # A seed that failed for the reference is not retried.
        return replace(found, n_seeds=min(asked, self._asked(self.reference.name)))

    def _nothing_gained(self) -> bool:
        """Whether fine-tuning is not shown to beat its floor."""
        reference = self._chosen().get(self.reference.name)
        if reference is None or len(reference.runs) < 2:
            return False
        itself = pair(reference, reference, self.auto.floors, self.auto.rule.higher_is_better)
        if itself is None or itself.floor is None:
            return False
        return difference_bound(itself.theirs, itself.floor, itself.rotated, self.auto.rule.confidence) <= 0

    def _over(self, more: int) -> str | None:
        """The exhausted budget, in words; None while all allow more runs."""
        swept, auto, done = self.swept, self.auto, self.searched + len(self.swept.runs if self.swept else ())
        minutes = (time.monotonic() - self.began + self.stages.seconds_before) / 60
        if more and auto.max_runs is not None and done + more > auto.max_runs:
            return f"{done} runs, of {auto.max_runs} allowed"
        # Even after a long search: without a comparison there is no answer.
        if more and swept is not None and auto.max_minutes is not None and minutes > auto.max_minutes:
            return f"{minutes:.0f} minutes, of {auto.max_minutes:g} allowed"
        return None

    def _complete_curve(self) -> Phases[None]:
        names = [name for ladder in self.ladders for name in ladder.names] + [c.name for c in self.off_ladder]
        missing = [name for name in names if self._asked(name) < self._starting]
        if not (runs := self._missing(dict.fromkeys(missing, self._starting))):
            return
        labels, over = ", ".join(self.candidates[name].label for name in missing), self._over(len(runs))
        if over is None:
            self.stages.observers.message(f"The decision is made; {labels} complete the curve.")
            yield from self._add(runs)
        elif self.swept is not None:
            self.swept.note([why := f"The plan ended after {over}; {labels} would complete the curve."])
            self.stages.observers.message(why)

    def _saved(self) -> str:
        runs = 0 if self.swept is None else len(self.swept.runs)
        grid = sum(len(c.lrs) for c in self.stages.candidates) * STARTING_SEEDS
        total = runs + self.searched
        fewer = f", in place of {grid} for the whole grid with {STARTING_SEEDS} seeds" if total < grid else ""
        return f"The adaptive plan trained {total} runs ({self.searched} to find learning rates){fewer}."
