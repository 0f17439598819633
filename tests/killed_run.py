"""Runs `rankwise` and ends it, as `kill -9` does, at a moment that is given: `run` for test_resume.py, or a script.

    python killed_run.py KIND NTH FLAGS...

The moment is the NTH call of what KIND names; "none" lets the command end by itself.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rankwise import experiment
from rankwise.cli import main
from rankwise.pack.pack import Pack
from rankwise.sweeps.run import auto, location, scheduler
from rankwise.sweeps.run.stages import Stages
from rankwise.sweeps.storage import directory
from rankwise.tasks.digits import digits
from rankwise.train import checkpoints, loop, state
from rankwise.train.checkpoints import Checkpoints
from tables_only import write_tables


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(nth: int, real: Callable[..., Any], when: Callable[[], bool] = lambda: True) -> Callable[..., Any]:
    """A function that kills instead of being called the nth time."""
    calls = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += when()
        if calls[0] >= nth and when():
            kill()
        return real(*args, **kwargs)

    return call


def in_a_checkpoint(call: str, nth: int) -> None:
    """Within the writing of a checkpoint, at the nth call of a function of `os`."""
    writing = [False]
    write = Checkpoints.write

    def noted(self: Checkpoints, *args: Any) -> bool:
        writing[0] = True
        try:
            return write(self, *args)
        finally:
            writing[0] = False

    checkpoints.Checkpoints.write = noted
    setattr(os, call, killing(nth, getattr(os, call), lambda: writing[0]))


def half_a_file(nth: int) -> None:
    """When the nth file of the checkpoints has been written to its middle."""
    write = checkpoints.write_durably
    calls = [0]

    def torn(path: Any, data: Any) -> None:
        calls[0] += 1
        if calls[0] == nth:
            data = data if isinstance(data, bytes) else b"".join(map(bytes, data))
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(data[: len(data) // 2])
            kill()
        write(path, data)

    checkpoints.write_durably = torn


def begun() -> Callable[[], bool]:
    """Whether the sweep has begun; before that the base trains and is measured, and there is nothing to go on from."""
    found = [False]
    begin = location.begin_run

    def noted(*args: Any) -> Any:
        found[0] = True
        return begin(*args)

    location.begin_run = noted
    return lambda: found[0]


def at_step(nth: int) -> None:
    Pack.update = killing(nth, Pack.update, begun())


def at_the_results(nth: int) -> None:
    experiment.write_report = killing(nth, experiment.write_report)


def at_the_placing(nth: int) -> None:
    """While the results, all written by then, are put in place: before the nth file or folder."""
    real, placed = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        staged, at = (Path(path).parent.name.startswith(directory.STAGED) for path in (source, target))
        placed[0] += staged and not at
        if staged and not at and placed[0] == nth:
            kill()
        real(source, target)

    os.replace = replace


def in_evaluation(nth: int) -> None:
    """Within the nth evaluation of a pack of the sweep."""
    evaluate, evaluations, within, has_begun = loop.evaluate_rows, [0], [False], begun()

    def noted(*args: Any) -> Any:
        evaluations[0] += has_begun()
        within[0] = True
        try:
            return evaluate(*args)
        finally:
            within[0] = False

    loop.evaluate_rows = noted
    digits.accuracy = killing(1, digits.accuracy, lambda: within[0] and evaluations[0] >= nth)


def at_a_rung(nth: int) -> None:
    scheduler.worst_runs = killing(nth, scheduler.worst_runs)


def while_pruning(nth: int) -> None:
    state.TrainingState.prune = killing(nth, state.TrainingState.prune)


def at_a_decision(nth: int) -> None:
    """When the adaptive plan asks what is next."""
    auto.next_step = killing(nth, auto.next_step)


def in_a_comparison(nth: int) -> None:
    """While a size is compared with the reference for such a decision."""
    auto.compare_with_reference = killing(nth, auto.compare_with_reference)


def after_the_search(nth: int) -> None:
    """When learning rates have been found, and at the nth choice among what has been trained since."""
    auto.choose_learning_rates = killing(nth, auto.choose_learning_rates)


KINDS: dict[str, Callable[[int], None]] = {
    "none": lambda nth: None,
    "fsync": lambda nth: in_a_checkpoint("fsync", nth),
    "replace": lambda nth: in_a_checkpoint("replace", nth),
    "half": half_a_file,
    "step": at_step,
    "evaluation": in_evaluation,
    "rung": at_a_rung,
    "pruning": while_pruning,
    "decision": at_a_decision,
    "comparison": in_a_comparison,
    "choice": after_the_search,
    "placing": at_the_placing,
    "results": at_the_results,
}


def run(kind: str, nth: int, *flags: str) -> int:
    """Run the command, and kill this process at the moment: for a process that is good for nothing else."""
    torch.set_num_threads(1)
    # The price of a further adapter is measured in seconds, and decides what trains together: it is fixed here.
    Stages.measured_price = lambda self, runs: 1.0
    experiment.write_report = write_tables  # the report is drawn from the results, which are compared
    KINDS[kind](nth)
    return main(flags)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
