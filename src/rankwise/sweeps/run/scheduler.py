"""Schedule packs: to the end or from rung to rung, in halves where memory runs out; with checkpoints.

The scheduler says which packs are to train and takes in their outcomes. It decides and keeps; it does not train.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from rankwise.errors import PackError
from rankwise.sweeps.choose.configurations import RunScore
from rankwise.sweeps.choose.rungs import runs_behind, worst_runs
from rankwise.sweeps.measure import validate
from rankwise.sweeps.problem import Problem, Run, SweepState, score_of
from rankwise.sweeps.run.stage import BestBefore
from rankwise.sweeps.run.worker import PackJob, PackState
from rankwise.sweeps.storage.checkpoints import Keeper, Moment, moment
from rankwise.train.events import Event, Observer, Resumed, RunEnded
from rankwise.train.machine.interrupts import Stop
from rankwise.train.state import TrainingState


class Scheduler:
    """The packs of a sweep, one stage after another.

    Args:
        model: The base.
        packs: Runs by pack, in the order in which packs train.
        problem: Data, loss and metric.
        rungs: Epochs, rising, after which the worst configurations leave.
        swept: What is found; filled here.
        observer: Hears what happens.
        keeper: Keeps the state on disk; None to keep none.
        stop: Tells when to stop.
        best_before: Configuration -> step -> the best metric of earlier runs there, which runs are compared with at
            rungs; None to compare them with one another.
    """

    def __init__(
        self,
        model: nn.Module,
        packs: Sequence[Sequence[Run]],
        problem: Problem,
        rungs: Sequence[int],
        swept: SweepState,
        observer: Observer,
        keeper: Keeper | None,
        stop: Stop,
        best_before: BestBefore | None = None,
    ) -> None:
        self._model, self._problem, self._rungs = model, problem, rungs
        self.packs = [list(pack) for pack in packs]
        """The runs by pack, as they train now."""
        self._swept, self._keeper, self._stop, self._best_before = swept, keeper, stop, best_before
        self._observers: list[Observer] = [swept, *([] if keeper is None else [keeper]), observer]
        self._waiting: dict[int, TrainingState] = {}
        self._out: dict[int, Moment] = {}
        """The states of packs that a worker has now."""
        self._stage = 0

    def resume(self) -> None:
        """Resume from the last complete checkpoint, if there is one."""
        if self._keeper is not None:
            self._waiting, self._stage = self._keeper.read()
            if self._keeper.cut is not None:
                by_name = {run.name: run for pack in self.packs for run in pack}
                self.packs = [[by_name[name] for name in pack] for pack in self._keeper.cut]
            self._swept.seconds_before = sum(map(self._seconds, range(len(self.packs))))
            self._tell(Resumed(tuple(self._swept.curve), tuple(self._swept.outcomes.values())))

    def _seconds(self, i: int) -> float:
        """Training time of a pack so far."""
        known = [self._swept.outcomes[run.name].seconds for run in self.packs[i] if run.name in self._swept.outcomes]
        if i in self._waiting:
            known.append(float(self._waiting[i].plain["seconds"]))
        return max(known, default=0.0)

    def rounds(self) -> Iterator[Iterator[PackJob]]:
        """Yield the packs to train until every run has ended; their outcomes are to be taken in before the next.

        Yields:
            Packs to their next rung, each made when it is asked for.
        """
        for stage in range(self._stage, len(self._rungs) + 1):
            until = self._rungs[stage] if stage < len(self._rungs) else None
            # Again where packs turned out too large and were split.
            while any(self._has_work(i, until) for i in range(len(self.packs))):
                yield self._jobs(until)
            if until is not None:
                self._rung(until)
            self._stage = stage + 1
            self.keep()

    def _jobs(self, until: int | None) -> Iterator[PackJob]:
        i = 0  # no fixed range: halves of packs are added at the end
        while i < len(self.packs):
            if self._has_work(i, until):
                yield PackJob(i, tuple(self.packs[i]), self._hand_out(i), until)
            i += 1

    def _hand_out(self, i: int) -> TrainingState | None:
        """The state of a pack that a worker gets; a copy would only take memory."""
        state = self._waiting.pop(i, None)
        if state is not None:
            self._out[i] = moment(state)
        return state

    def _has_work(self, i: int, until: int | None) -> bool:
        over = all(run.name in self._swept.outcomes for run in self.packs[i])
        reached = until is not None and i in self._waiting and self._waiting[i].plain["epoch"] >= until
        return not over and not reached

    def take(self, event: Event | PackState) -> None:
        """Handle what a worker yields.

        Raises:
            KeyboardInterrupt: Asked to stop; the state has been kept.
            PackError: A step of a single run does not fit into memory.
        """
        if isinstance(event, PackState):
            self._take_state(event)
        else:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer.on_event(event)

    def _take_state(self, pack: PackState) -> None:
        self._out.pop(pack.pack, None)
        self._swept.scores |= pack.scores
        self._swept.note(pack.notes)
        if pack.state is None:
            self._waiting.pop(pack.pack, None)
        else:
            self._waiting[pack.pack] = pack.state
        if pack.status == "under way":
            self.keep()
            self._hand_out(pack.pack)  # the worker trains on
            if self._stop.asked:
                raise KeyboardInterrupt
        elif pack.status == "too large" and pack.state is not None:
            self._split(pack.pack, pack.state)
        elif pack.state is None:
            self.keep()

    def _split(self, i: int, state: TrainingState) -> None:
        """Cut a pack that doesn't fit into two, of half the runs each; what had ended stays with the first.

        Raises:
            PackError: It has one run.
        """
        names = state.names
        if len(names) == 1:
            raise PackError(
                f'A step of "{names[0]}" alone does not fit into the memory of the device '
                f"({next(self._model.parameters()).device}). Make its batches smaller."
            )
        leaving = names[len(names) // 2 :]
        self._waiting[i], self._waiting[len(self.packs)] = state.select(names[: len(names) // 2]), state.select(leaving)
        self.packs.append([run for run in self.packs[i] if run.name in leaving])
        self.packs[i] = [run for run in self.packs[i] if run.name not in leaving]
        if self._keeper is not None:
            self._keeper.cut = [[run.name for run in pack] for pack in self.packs]
        self._swept.notes.append(
            f"Memory ran out for {len(names)} runs at a time; they went on in packs of {len(names) - len(leaving)} and "
            f"{len(leaving)}."
        )
        self.keep()  # before the halves are handed out

    def keep(self) -> None:
        """Write a checkpoint of what is there now."""
        if self._keeper is not None:
            self._keeper.write(self._waiting, self._stage, self._out)

    def _rung(self, epochs: int) -> None:
        """Prune the worst runs."""
        reasons = self._worst(epochs) if self._best_before is None else self._behind(self._best_before, epochs)
        weights = {run.name: run.training.weights for runs in self.packs for run in runs}
        for i, state in [*self._waiting.items()]:
            leaving = {name: reasons[name] for name in state.names if name in reasons}
            if leaving:
                outcomes, left = state.prune(leaving, weights)
                for outcome in outcomes:
                    self._tell(RunEnded(outcome))
                if left is None:
                    del self._waiting[i]
                else:
                    self._waiting[i] = left

    def _behind(self, best_before: BestBefore, epochs: int) -> dict[str, str]:
        """The runs that are behind earlier ones of their configuration."""
        last = {point.run: point for point in self._swept.curve}
        here = {
            run.name: (run.configuration, last[run.name].metric, best_before[run.configuration][last[run.name].step])
            for runs in self.packs
            for run in runs
            if run.name in last and last[run.name].step in best_before.get(run.configuration, {})
        }
        return runs_behind(here, self._problem.higher_is_better, epochs)

    def _worst(self, epochs: int) -> dict[str, str]:
        """The worst runs on each data set."""
        scores: dict[str, list[RunScore]] = {}
        weights = {run.name: run.training.weights for runs in self.packs for run in runs}
        for i, runs in enumerate(self.packs):
            ended = {run.name: self._swept.outcomes[run.name] for run in runs if run.name in self._swept.outcomes}
            states = {name: outcome.state for name, outcome in ended.items() if outcome.status == "finished"}
            if i in self._waiting:
                states |= self._waiting[i].final_states(weights)
            measured = [run for run in runs if run.name in states]
            values = validate(self._model, measured, states, self._problem) if measured else {}
            for run in runs:
                status = ended[run.name].status if run.name in ended else "finished"
                validation = values.get(run.name, np.empty(0))
                score = score_of(run, self._swept.parameters[run.name], validation, status, self._problem.cut_rows(run))
                scores.setdefault(run.data, []).append(score)
        reasons: dict[str, str] = {}
        for group in scores.values():
            reasons |= worst_runs(group, self._problem.higher_is_better, epochs)
        return reasons
