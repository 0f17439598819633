"""A short further training of adapters that were cut, in a pack with all others, and of trained ones for comparison."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from torch import nn

from rankwise.pack.resolved import AdapterState
from rankwise.sweeps.judged import JudgedSweep
from rankwise.sweeps.plan.fitting import bytes_of_runs, cut_to_fit, limit_of, pack_training
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.squeezing.squeeze import Squeezed, most_at_once, score, sharing_packs
from rankwise.train.outcome import Outcome


def repair(model: nn.Module, judged: JudgedSweep, squeezed: Squeezed, steps: int) -> None:
    """Train every cut adapter some steps further, and as many the adapters that were trained at its rank.

    The optimiser starts anew, with the learning rate of the smaller rank where that was trained, else of the larger
    one; it falls linearly to 0 over these steps. The weights of the last step are taken.

    Args:
        model: The base; it is as before afterwards.
        judged: The sweep.
        squeezed: The cut adapters; the others are added to it.
        steps: How many.
    """
    swept = judged.swept
    runs = {run.name: run for run in swept.runs}
    known = {name: judged.by_name.get(c.name) for name, c in squeezed.smaller.items()}
    rates = {name: c.lr for name, c in known.items() if c is not None and c.runs and c.lr is not None}
    cut = [
        _further(run, squeezed.cut.outcomes[run.name].state, steps, judged.problem, rates.get(run.configuration))
        for run in squeezed.cut.runs
    ]
    trained = {run.name: runs[run.name] for c in known.values() if c is not None for run in c.runs}
    longer = [
        _further(run, state, steps, judged.problem)
        for run in trained.values()
        if (state := swept.outcomes[run.name].state)  # of an earlier sweep's runs the folders alone have them
    ]
    states: dict[str, AdapterState] = {}
    for part in sharing_packs([*cut, *longer], len(cut) + len(longer)):
        needed = bytes_of_runs(model, part, judged.problem)
        for pack in cut_to_fit(part, lambda run, needed=needed: needed[run.name], limit_of(model, None)):
            states |= _train(model, pack, judged.problem, steps)
    squeezed.steps = steps
    squeezed.repaired, squeezed.longer = (_ended(group, states) for group in (cut, longer))
    squeezed.repaired.parameters = squeezed.cut.parameters
    squeezed.longer.parameters = {run.name: swept.parameters[run.name] for run in longer}
    for group in (squeezed.repaired, squeezed.longer):
        score(model, group, judged.problem, most_at_once(swept))


def _further(run: Run, state: AdapterState, steps: int, problem: Problem, lr: float | None = None) -> Run:
    epochs = 1 + steps // max(1, problem.train_rows(run.data) // run.training.batch_size)
    course = {
        "epochs": epochs,
        "horizon": steps,
        "warmup": 0,
        "schedule": "linear",
        "patience": None,
        "weights": "last",
    }
    return replace(run, start=state, training=replace(run.training, lr=lr or run.training.lr, **course))


def _train(model: nn.Module, pack: Sequence[Run], problem: Problem, steps: int) -> dict[str, AdapterState]:
    """The tensors of each run of a pack after some steps; those that diverged are left out."""
    training = pack_training(model, pack, problem)
    done = 0
    while done < steps and not training.done:
        with closing(training.by_step()) as course:
            for _ in course:
                done += 1
                if done == steps:
                    break
    return {} if training.done else training.final_states()


def _ended(runs: Sequence[Run], states: Mapping[str, AdapterState]) -> SweepState:
    ended = SweepState(runs, {}, complete=True)
    for run in runs:
        status = "finished" if run.name in states else "diverged"
        steps = run.training.horizon or 0
        ended.outcomes[run.name] = Outcome(run.name, states.get(run.name, {}), status, None, steps, steps, 0, 0.0)
    return ended
