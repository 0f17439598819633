"""Going on with a sweep: what is kept, what is refused, and what a user is told."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.errors import CheckpointError, ConfigError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.show.live import progress
from rankwise.sweeps.measure import measure
from rankwise.sweeps.plan.plan import read_plan, write_plan
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.run.run import run_sweep
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.writing import write_durably
from small_sweep import accuracy, loss, results_of, small_model, small_problem, small_run, small_runs

OFTEN = CheckpointInterval(epochs=1)


def run(folder: Path | None, problem: Problem | None = None, runs: list[Run] | None = None, **given: Any) -> SweepState:
    given = {"every": OFTEN, **given}
    return run_sweep(
        given.pop("model", None) or small_model(),
        small_runs() if runs is None else runs,
        problem or small_problem(),
        progress("plain"),
        checkpoints=folder,
        **given,
    )


def signalling(nth: int, number: signal.Signals) -> Problem:
    """The small problem, whose metric sends a signal when it is taken the nth time."""
    problem, calls = small_problem(), []

    def metric(outputs: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        calls.append(1)
        if len(calls) == nth:
            signal.raise_signal(number)
        return accuracy(outputs, batch)

    return Problem(problem.splits, loss, metric, problem.other_tests)


def comparable(found: SweepState) -> object:
    results = results_of(found)
    for each in results["runs"]:
        del each["seconds"]
    states = {name: {k: v.numpy().tobytes() for k, v in o.state.items()} for name, o in found.outcomes.items()}
    return results, states, [str(point) for point in found.curve]


@cache
def uninterrupted(rungs: tuple[int, ...] = ()) -> object:
    return comparable(run(None, rungs=rungs))


@pytest.mark.parametrize("rungs", [(), (1, 2)])
@pytest.mark.parametrize(("number", "nth"), [(signal.SIGINT, 2), (signal.SIGTERM, 4), (signal.SIGINT, 6)])
def test_a_signal_keeps_everything(tmp_path: Path, rungs: tuple[int, ...], number: signal.Signals, nth: int) -> None:
    first = run(tmp_path, signalling(nth, number), rungs=rungs)
    assert not first.complete
    assert len(first.outcomes) < len(first.runs)
    again = run(tmp_path, rungs=rungs, resume=True)
    assert again.complete
    assert len(again.outcomes) == len(again.runs)
    assert comparable(again) == uninterrupted(rungs)


def test_checkpoints_change_nothing_and_a_run_that_has_ended_goes_on_to_its_results(tmp_path: Path) -> None:
    assert comparable(run(tmp_path)) == uninterrupted()
    assert comparable(run(tmp_path, resume=True)) == uninterrupted()


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a run that has ended, nor where a measurement was interrupted after its first pack."""
    measured: list[list[str]] = []

    def noted(model: nn.Module, runs: Sequence[Run], *args: Any, **given: Any) -> None:
        if [run.name for run in runs] == interrupted:
            raise KeyboardInterrupt
        measured.append([run.name for run in runs])
        measure(model, runs, *args, **given)

    monkeypatch.setattr("rankwise.sweeps.run.run.measure", noted)
    interrupted: list[str] = []
    assert comparable(run(tmp_path / "whole")) == uninterrupted()
    first, second = measured
    measured.clear()
    assert comparable(run(tmp_path / "whole", resume=True)) == uninterrupted()
    assert not measured
    interrupted = second
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part")
    interrupted = []
    assert comparable(run(tmp_path / "part", resume=True)) == uninterrupted()
    assert measured == [first, second]


def test_the_plan_is_written_first_and_followed(tmp_path: Path) -> None:
    run(tmp_path, signalling(2, signal.SIGTERM))
    plan = read_plan(tmp_path)
    assert [name for pack in plan.packs for name in pack] == [r.name for r in small_runs()]
    # Three packs instead of two: another program might have cut them so.
    first, *rest = plan.packs
    write_plan(tmp_path, replace(plan, packs=[first, *[[name] for pack in rest for name in pack]]))
    again = run(tmp_path, resume=True)
    assert again.complete
    assert sorted(set(again.packs.values())) == [0, 1, 2, 3, 4]


def test_a_damaged_checkpoint_and_no_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, signalling(3, signal.SIGTERM))
    manifest = json.loads(max(tmp_path.glob("checkpoint-*.json")).read_text())
    last = tmp_path / manifest["content"]["files"]["pack-0"]["file"]
    last.write_bytes(last.read_bytes()[:-1])
    capsys.readouterr()
    assert comparable(run(tmp_path, resume=True)) == uninterrupted()
    assert "is damaged" in capsys.readouterr().err
    for path in tmp_path.glob("checkpoint-*.json"):
        path.write_text("")
    assert comparable(run(tmp_path, resume=True)) == uninterrupted()
    assert "No checkpoint in" in capsys.readouterr().err


def test_a_full_disk_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rankwise.train import checkpoints

    def full(path: Path, data: bytes) -> None:
        if full_now():
            raise checkpoints.OutputError("no") from OSError(28, "No space left on device")
        write_durably(path, data)

    calls: list[int] = []

    def full_now() -> bool:
        calls.append(1)
        return len(calls) > 3

    monkeypatch.setattr(checkpoints, "write_durably", full)
    assert comparable(run(tmp_path)) == uninterrupted()
    assert "could not be written" in capsys.readouterr().err
    monkeypatch.undo()
    assert comparable(run(tmp_path, resume=True)) == uninterrupted(), "the first checkpoint was whole"


def test_many_logs_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankwise.sweeps.storage import checkpoints as keeping

    monkeypatch.setattr(keeping, "MOST_LOGS", 3)
    runs = [small_run("r1", epochs=9, patience=99), small_run("r4", epochs=3)]
    alone = run(None, runs=runs)
    most: list[int] = []

    def counting(outputs: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        most.append(len(list(tmp_path.glob("*-log-*"))))
        return accuracy(outputs, batch)

    problem = small_problem()
    found = run(tmp_path, Problem(problem.splits, loss, counting, problem.other_tests), runs=runs)
    assert comparable(found) == comparable(alone)
    assert 3 <= max(most) <= 5, "those of two checkpoints"
    assert comparable(run(tmp_path, runs=runs, resume=True)) == comparable(alone)


def test_waiting_packs_are_not_written_again(tmp_path: Path) -> None:
    written: list[set[str]] = []

    def looking(outputs: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        written.append({path.name for path in tmp_path.glob("*-pack-0.*")})
        return accuracy(outputs, batch)

    problem = small_problem()
    run(tmp_path, Problem(problem.splits, loss, looking, problem.other_tests), rungs=(2,))
    # While the second pack trains to the rung the first one waits: one file of it, in several checkpoints.
    first, second, *_ = [names for names in written if names]
    assert len(first) == 1
    assert second == first


def other_lr() -> list[Run]:
    runs = small_runs()
    return [replace(runs[0], training=replace(runs[0].training, lr=0.5)), *runs[1:]]


def other_base() -> torch.nn.Module:
    model = small_model()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    return model


def other_data() -> Problem:
    problem = small_problem()
    splits = problem.splits["data"]
    x, y = splits.validation
    return replace(problem, splits={"data": replace(splits, validation=(x, y.flip(0)))})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: {"runs": other_lr()}, "Its runs have other settings now: SHA-256 [0-9a-f]{12}, and [0-9a-f]{12} when"),
        (lambda: {"model": other_base()}, "The base has other weights now"),
        (lambda: {"problem": other_data()}, "The data are others now"),
    ],
)
def test_what_is_another_run_is_refused(tmp_path: Path, given: Callable[[], dict[str, Any]], message: str) -> None:
    run(tmp_path, signalling(2, signal.SIGTERM))
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, resume=True, **given())


def test_nothing_to_go_on_with_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"plan\.json can't be read \(No such file or directory\)"):
        run(tmp_path, resume=True)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged: it is no JSON; start the run again"):
        run(tmp_path, resume=True)
    (tmp_path / "plan.json").write_text('{"format": "rankwise-plan-9"}')
    with pytest.raises(CheckpointError, match='has the format "rankwise-plan-9"'):
        run(tmp_path, resume=True)
    with pytest.raises(ConfigError, match="resume needs the folder"):
        run(None, resume=True)


def test_other_rungs_are_refused(tmp_path: Path) -> None:
    run(tmp_path, signalling(2, signal.SIGTERM))
    with pytest.raises(CheckpointError, match=r"can't be resumed with the rungs \[1\]; it began with \[\]"):
        run(tmp_path, resume=True, rungs=[1])


def test_another_machine_is_noted(tmp_path: Path) -> None:
    run(tmp_path, signalling(2, signal.SIGTERM))
    plan = read_plan(tmp_path)
    write_plan(tmp_path, replace(plan, made_with={**plan.made_with, "torch": "0.1"}))
    (note,) = run(tmp_path, resume=True).notes
    assert note.startswith("The run began with torch 0.1 and continued with torch ")


def test_patterns_that_are_functions_are_the_same_in_every_process(tmp_path: Path) -> None:
    def chosen() -> list[Run]:
        # Made anew, as in another process: its address is another.
        config = LoRAConfig(r=1, target_modules=[lambda name, module: name == "0"])
        return [replace(small_run("r1"), member=Member(name="r1-lr0.03-s0", lora=config))]

    run(tmp_path, signalling(2, signal.SIGTERM), runs=chosen())
    assert run(tmp_path, runs=chosen(), resume=True).complete


def test_the_time_before_is_known(tmp_path: Path) -> None:
    first = run(tmp_path, signalling(6, signal.SIGTERM))
    assert (first.complete, first.seconds_before) == (False, 0.0)
    trained = [outcome.seconds for outcome in first.outcomes.values()]
    again = run(tmp_path, resume=True)
    assert again.seconds_before >= max(trained, default=0.0)
    assert 0 < again.seconds_before <= sum(outcome.seconds for outcome in again.outcomes.values())
