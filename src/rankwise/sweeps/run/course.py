"""The course of a sweep: its packs train in turn, to the end or from rung to rung, and what is under way is kept."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from rankwise.errors import PackError
from rankwise.pack.memory import ran_out
from rankwise.sweeps.choose.configurations import RunScore
from rankwise.sweeps.choose.rungs import worst_runs
from rankwise.sweeps.measure import validate
from rankwise.sweeps.plan.fitting import training_of
from rankwise.sweeps.problem import Problem, Run, SweepState, score_of
from rankwise.sweeps.run.watch import ProgressByConfiguration
from rankwise.sweeps.storage.checkpoints import Keeper
from rankwise.train.checkpoints import Checkpoints
from rankwise.train.loop import PackTraining
from rankwise.train.machine.interrupts import Stop
from rankwise.train.outcome import Outcome
from rankwise.train.state import TrainingState


class Course:
    """A sweep under way.

    Args:
        model: The base.
        packs: Runs by pack, in the order in which packs train.
        problem: Data, loss and metric.
        rungs: Epochs, rising, after which the worst configurations leave.
        swept: What is found; filled here.
        watch: Told how it goes.
        checkpoints: Where the state is kept; None to keep none.
        stop: Tells when to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        packs: Sequence[Sequence[Run]],
        problem: Problem,
        rungs: Sequence[int],
        swept: SweepState,
        watch: ProgressByConfiguration,
        checkpoints: Checkpoints | None,
        stop: Stop,
    ) -> None:
        self._model, self._problem, self._rungs = model, problem, rungs
        self.packs = [list(pack) for pack in packs]
        """The runs by pack, as they train now."""
        self._swept, self._watch, self._stop = swept, watch, stop
        self._checkpoints = checkpoints
        self._keeper = None if checkpoints is None else Keeper(checkpoints, swept)
        self._waiting: dict[int, TrainingState] = {}
        self._stage = 0

    def resume(self) -> None:
        """Take up the last checkpoint, if there is a whole one."""
        if self._keeper is not None:
            self._waiting, self._stage = self._keeper.read()
            if self._keeper.cut is not None:
                by_name = {run.name: run for pack in self.packs for run in pack}
                self.packs = [[by_name[name] for name in pack] for pack in self._keeper.cut]
            self._watch.points(self._swept.curve)
            for outcome in self._swept.outcomes.values():
                self._watch.ended(outcome)
            self._watch.mark_resumed()

    def run(self) -> None:
        """Train everything that has not ended.

        Raises:
            KeyboardInterrupt: Asked to stop; the state has been kept.
        """
        for stage in range(self._stage, len(self._rungs) + 1):
            until = self._rungs[stage] if stage < len(self._rungs) else None
            # Not a fixed range: packs that turn out too large are split, and the new ones come last.
            i = 0
            while i < len(self.packs):
                if not self._over(i) and not self._reached(i, until):
                    self._train(i, until)
                i += 1
            if until is not None:
                self._rung(until)
            self._stage = stage + 1
            self._keep()

    def _over(self, i: int) -> bool:
        return all(run.name in self._swept.outcomes for run in self.packs[i])

    def _reached(self, i: int, until: int | None) -> bool:
        return until is not None and i in self._waiting and self._waiting[i].plain["epoch"] >= until

    def _begin(self, i: int) -> PackTraining:
        """A pack as it stands, ready to train."""
        training = training_of(self._model, self.packs[i], self._problem)
        if i in self._waiting:
            training.restore(self._waiting.pop(i))
        return training

    def _train(self, i: int, until: int | None) -> None:
        """Train a pack to a rung, or to its end; where memory runs out, in halves."""
        training = self._begin(i)
        while not training.done and (until is None or training.epoch < until):
            epoch, short = None, None
            try:
                epoch = training.advance(self._after_step(training))
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                # The step that failed has changed nothing.
                short = training.state()
            if short is not None:
                # Outside the handler, where the error's frames hold that step's tensors no longer.
                del training
                self._split(i, short)
                training = self._begin(i)
                continue
            self._swept.note(training.notes)
            if epoch is not None:
                self._swept.curve.extend(epoch.points)
                self._watch.points(epoch.points)
                self._ended(epoch.ended)
                if self._checkpoints is not None:
                    self._checkpoints.epoch_over()
            if self._pause():
                self._wait(i, training)
                self._keep()
                self._waiting.pop(i, None)  # it goes on in `training`; a copy would only take memory
            if self._stop.asked:
                raise KeyboardInterrupt
        self._wait(i, training)
        if training.done:
            self._keep()

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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        leaving = names[len(names) // 2 :]
        self._waiting[i], self._waiting[len(self.packs)] = state.only(names[: len(names) // 2]), state.only(leaving)
        self.packs.append([run for run in self.packs[i] if run.name in leaving])
        self.packs[i] = [run for run in self.packs[i] if run.name not in leaving]
        if self._keeper is not None:
            self._keeper.cut = [[run.name for run in pack] for pack in self.packs]
        self._swept.notes.append(
            f"Memory ran out for {len(names)} runs at a time; they went on in packs of {len(names) - len(leaving)} and "
            f"{len(leaving)}."
        )

    def _after_step(self, training: PackTraining) -> Callable[[], bool]:
        def pause() -> bool:
            self._watch.report_step(lambda: training.names, training.steps)
            return self._pause()

        return pause

    def _pause(self) -> bool:
        return self._stop.asked or (self._checkpoints is not None and self._checkpoints.due())

    def _wait(self, i: int, training: PackTraining) -> None:
        if training.done:
            self._waiting.pop(i, None)
        else:
            self._waiting[i] = training.state()

    def _keep(self) -> None:
        if self._keeper is not None:
            self._keeper.write(self._waiting, self._stage)

    def _ended(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._swept.outcomes[outcome.name] = outcome
            self._watch.ended(outcome)

    def _rung(self, epochs: int) -> None:
        """Let the worst leave, of the runs on each data set."""
        scores: dict[str, list[RunScore]] = {}
        for i, runs in enumerate(self.packs):
            ended = {run.name: self._swept.outcomes[run.name] for run in runs if run.name in self._swept.outcomes}
            states = {name: outcome.state for name, outcome in ended.items() if outcome.status == "finished"}
            if i in self._waiting:
                states |= self._waiting[i].kept({run.name: run.training.weights for run in runs})
            measured = [run for run in runs if run.name in states]
            values = validate(self._model, measured, states, self._problem) if measured else {}
            for run in runs:
                status = ended[run.name].status if run.name in ended else "finished"
                validation = values.get(run.name, np.empty(0))
                score = score_of(run, self._swept.parameters[run.name], validation, status, self._problem.rows_of(run))
                scores.setdefault(run.data, []).append(score)
        reasons: dict[str, str] = {}
        for group in scores.values():
            reasons |= worst_runs(group, self._problem.higher_is_better, epochs)
        for i in list(self._waiting):
            leaving = {name: reasons[name] for name in self._waiting[i].names if name in reasons}
            if leaving:
                training = self._begin(i)
                self._ended(training.prune(leaving))
                self._wait(i, training)
