"""The scheduler with workers of other kinds: where packs train, and in which order, changes nothing."""

import pickle
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest
from torch import nn

from rankwise.sweeps.problem import Problem, SweepState
from rankwise.sweeps.run.run import run_sweep
from rankwise.sweeps.run.units.here import Here
from rankwise.sweeps.run.worker import LocalWorker, PackJob, PackState
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Event, Observers
from small_sweep import results_of, small_model, small_problem, small_runs


class Elsewhere:
    """Takes all packs at once, trains them in another order over its own base, and hands over their outcomes
    when all are over; everything goes through a pickle."""

    def __init__(self, model: nn.Module, problem: Problem, wanted: Callable[[], bool]) -> None:
        self.rounds: list[int] = []

    def train(self, jobs: Iterable[PackJob]) -> Generator[Event | PackState]:
        sent = pickle.dumps([*jobs])
        worker = LocalWorker(small_model(), small_problem())
        yield from pickle.loads(pickle.dumps([*worker.train(pickle.loads(sent)[::-1])]))


def comparable(found: SweepState) -> object:
    results = results_of(found)
    for each in results["runs"]:
        del each["seconds"]
    states = {name: {k: v.numpy().tobytes() for k, v in o.state.items()} for name, o in found.outcomes.items()}
    return results, states, sorted(str(point) for point in found.curve)


@pytest.mark.parametrize("rungs", [(), (1, 2)])
def test_packs_may_train_elsewhere_in_any_order(tmp_path: Path, rungs: tuple[int, ...]) -> None:
    here = run_sweep(small_model(), small_runs(), small_problem(), Observers(), rungs=rungs)
    there = run_sweep(
        small_model(), small_runs(), small_problem(), Observers(), rungs=rungs, checkpoints=tmp_path,
        every=CheckpointInterval(epochs=1), workers=Here(Elsewhere),
    )  # fmt: skip
    assert there.complete
    assert comparable(there) == comparable(here)


def test_packs_that_turn_out_too_large_are_trained_in_halves_in_a_further_round() -> None:
    sizes: list[list[int]] = []

    class Narrow(Elsewhere):
        def train(self, jobs: Iterable[PackJob]) -> Generator[Event | PackState]:
            worker, asked = LocalWorker(small_model(), small_problem()), [*jobs]
            sizes.append([len(job.runs) for job in asked])
            for job in asked:
                *told, last = worker.train([PackJob(job.pack, job.runs, job.state, 1 if len(job.runs) > 3 else None)])
                yield from told
                assert isinstance(last, PackState)
                yield PackState(last.pack, "too large" if len(job.runs) > 3 else "over", last.state)

    found = run_sweep(small_model(), small_runs()[:8], small_problem(), Observers(), workers=Here(Narrow))
    assert found.complete
    assert sizes == [[8], [4, 4], [2, 2, 2, 2]]
    assert [point.step for point in found.curve if point.run == "r1-lr0.03-s0"] == [5, 10, 15]
    assert found.notes.count("Memory ran out for 4 runs at a time; they went on in packs of 2 and 2.") == 2


def test_packs_that_a_worker_has_stay_in_the_checkpoints_that_are_written_meanwhile(tmp_path: Path) -> None:
    class Lost(Elsewhere):
        """Takes all packs, and dies when the first has come to its end."""

        def train(self, jobs: Iterable[PackJob]) -> Generator[Event | PackState]:
            worker, asked = LocalWorker(small_model(), small_problem()), [*jobs]
            first_round = asked[0].state is None
            yield from worker.train(asked if first_round else asked[:1])
            if not first_round:
                raise KeyboardInterrupt

    whole = run_sweep(small_model(), small_runs(), small_problem(), Observers(), rungs=(1,))
    given = (small_model(), small_runs(), small_problem(), Observers())
    part = run_sweep(*given, rungs=(1,), checkpoints=tmp_path, workers=Here(Lost))
    assert not part.complete
    assert any(outcome.status == "finished" for outcome in part.outcomes.values())
    again = run_sweep(*given, rungs=(1,), checkpoints=tmp_path, resume=True)
    assert again.complete
    assert comparable(again) == comparable(whole)
