"""The unit of work: one pack to its next rung, here or in another process, with equal bits."""

import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh
import small_sweep
from rankwise.sweeps.problem import Run
from rankwise.sweeps.run.worker import LocalWorker, PackJob, PackState, Worker
from rankwise.train.events import EpochEnded, Event, RunEnded, Stepped
from rankwise.train.settings import Training
from small_sweep import small_model, small_problem, small_run


def pack() -> tuple[Run, ...]:
    run = small_run("r4", seed=1, schedule="plateau", patience=1, epochs=9)
    warm = replace(small_run("r2"), start={"0.A": torch.arange(12.0).reshape(2, 6) / 9, "0.B": torch.zeros(8, 2)})
    return (run, warm, small_run("r1", lr=1e30, weights="last"), small_run("r8", seed=5, epochs=5))


def trained(jobs: Iterable[PackJob], worker: Worker | None = None) -> list[Event | PackState]:
    return [*(worker or LocalWorker(small_model(), small_problem())).train(jobs)]


def bits(value: Any) -> Any:
    """Events as values that compare, tensors by their bits and without the times."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(entry) for key, entry in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [bits(entry) for entry in value]
    if hasattr(value, "__dict__"):
        return type(value).__name__, bits(vars(value))
    return value.tobytes() if hasattr(value, "tobytes") else repr(value)


def over(events: list[Event | PackState]) -> PackState:
    assert isinstance(events[-1], PackState)
    return events[-1]


def without_steps(events: list[Event | PackState]) -> list[Event | PackState]:
    """Losses of steps are handed out by the clock."""
    return [event for event in events if not isinstance(event, Stepped)]


def test_a_job_does_in_another_process_what_it_does_here(tmp_path: Path) -> None:
    first = PackJob(0, pack(), until=2)
    here = trained([first])
    assert over(here).status == "over"
    second = PackJob(0, pack(), over(here).state)
    rest = trained([second])
    jobs, into = tmp_path / "jobs", tmp_path / "events"
    jobs.write_bytes(pickle.dumps([first, second]))
    done = fresh.call(small_sweep.train_pickled, jobs, into, torch.get_num_threads())
    assert done.returncode == 0, done.stderr
    there = pickle.loads(into.read_bytes())
    assert bits(without_steps(there)) == bits(without_steps([*here, *rest]))
    assert {event.outcome.status for event in rest if isinstance(event, RunEnded)} == {"finished"}
    assert over(rest).state is None


def test_done_twice_a_job_gives_the_same() -> None:
    state = over(trained([PackJob(3, pack(), until=1)])).state
    before = bits(state)
    one, other = (trained([PackJob(3, pack(), state, until=3)]) for _ in range(2))
    assert bits(without_steps(one)) == bits(without_steps(other))
    assert bits(state) == before, "the job is as it was"


@pytest.mark.parametrize("nth", [1, 7, 11])
def test_a_state_on_the_way_changes_nothing_and_can_be_continued_from(nth: int) -> None:
    whole = trained([PackJob(0, pack())])
    asked: list[int] = []

    def wanted() -> bool:
        asked.append(1)
        return len(asked) == nth

    watched = trained([PackJob(0, pack())], LocalWorker(small_model(), small_problem(), wanted))
    (state,) = [event for event in watched if isinstance(event, PackState) and event.status == "under way"]
    assert state.state is not None
    assert state.state.plain["steps"] == nth
    told = [event for event in watched if isinstance(event, EpochEnded | RunEnded)]
    assert bits(told) == bits([event for event in whole if isinstance(event, EpochEnded | RunEnded)])
    ended = [event for event in told[: watched.index(state)] if isinstance(event, RunEnded)]
    left = [*ended, *(e for e in trained([PackJob(0, pack(), state.state)]) if isinstance(e, RunEnded))]
    final = {e.outcome.name: bits(e.outcome) for e in whole if isinstance(e, RunEnded)}
    assert {e.outcome.name: bits(e.outcome) for e in left} == final


def test_every_step_has_its_loss_once() -> None:
    events = trained([PackJob(0, (small_run("r1"), small_run("r4", epochs=2)))])
    steps = [event for event in events if isinstance(event, Stepped)]
    numbers = [event.step - len(event.losses) + 1 + i for event in steps for i in range(len(event.losses))]
    assert numbers == [*range(1, 16)], "40 rows in batches of 8, for 3 epochs"
    assert all(len(row) == len(event.runs) for event in steps for row in (*event.losses, *event.rates))
    points = {(point.run, point.step): point for e in events if isinstance(e, EpochEnded) for point in e.points}
    first_run = [row[0] for event in steps for row in event.losses]
    for epoch in range(3):
        mean = sum(first_run[5 * epoch : 5 * epoch + 5]) / 5
        assert mean == pytest.approx(points["r1-lr0.03-s0", 5 * epoch + 5].train_loss, rel=1e-5)


def test_settings_without_a_rate_have_none_in_another_process() -> None:
    assert not pickle.loads(pickle.dumps(Training())).has_lr
    assert pickle.loads(pickle.dumps(Training(lr=0.1))).has_lr
