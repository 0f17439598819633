"""Sweeps in which each seed validates on its own rows: scores, plan, files, and an interruption anywhere."""

import json
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.errors import CheckpointError
from rankwise.sweeps.plan.plan import read_plan
from rankwise.sweeps.problem import Problem, Run, Splits, SweepState
from rankwise.sweeps.run.run import run_sweep
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.data.cuts import pooled
from rankwise.train.events import Observers
from small_sweep import accuracy, loss, small_model, small_run, some_data

RUNS = [small_run(c, seed, epochs=4) for c in ("r1", "r4", "full") for seed in (0, 1, 4)]


def rotated(metric: Any = accuracy) -> Problem:
    train, validation, rotation = pooled(some_data(40, 0), some_data(12, 1))
    splits = Splits(train, validation, some_data(20, 2), rotation)
    return Problem({"data": splits}, loss, metric, rotate=True)


def swept(folder: Path | None = None, runs: list[Run] = RUNS, **given: Any) -> SweepState:
    problem = given.pop("problem", None) or rotated()
    every = CheckpointInterval(epochs=1)
    return run_sweep(small_model(), runs, problem, Observers(), checkpoints=folder, every=every, **given)


def bits(found: SweepState) -> object:
    arrays = {
        name: [np.asarray(a).tobytes() for a in (s.validation, s.test, s.deciding, s.rows)]
        for name, s in found.scores.items()
    }
    states = {name: {k: v.numpy().tobytes() for k, v in o.state.items()} for name, o in found.outcomes.items()}
    return arrays, states, [str(point) for point in found.curve]


def test_seeds_share_a_pack_and_have_rows_of_their_own() -> None:
    found, rotation = swept(), rotated().splits["data"].rotation
    assert rotation is not None
    assert [found.packs[run.name] for run in RUNS] == [0] * 6 + [1] * 3
    for run in RUNS:
        scores, score = found.scores[run.name], found.score(run)
        expected = rotation.cut(run.member.seed).validation.numpy()
        assert scores.rows is not None
        assert scores.deciding is not None
        np.testing.assert_array_equal(scores.rows, expected)
        np.testing.assert_array_equal(score.rows, expected)
        np.testing.assert_array_equal(score.validation, scores.deciding)
        # The saved weights on these very rows, by a plain forward pass.
        model = small_model()
        state = found.outcomes[run.name].state
        with torch.no_grad():
            if run.method == "full":
                model.load_state_dict(state)
            else:
                scale = run.member.lora.alpha / run.member.lora.r if run.member.lora else 0.0
                for name in ("0", "2"):
                    model.get_submodule(name).weight += scale * state[f"{name}.B"] @ state[f"{name}.A"]
            x, y = (t[expected] for t in rotation.pool)
            np.testing.assert_array_equal(scores.validation, accuracy(model(x), (x, y)).numpy())


def test_more_seeds_change_nothing() -> None:
    few, many = swept(runs=[run for run in RUNS if run.member.seed < 4]), swept()
    for name, scores in few.scores.items():
        np.testing.assert_array_equal(scores.rows, many.scores[name].rows)
        for key, value in few.outcomes[name].state.items():
            torch.testing.assert_close(value, many.outcomes[name].state[key])


def test_without_rotation_the_pool_changes_nothing() -> None:
    fixed = replace(rotated(), rotate=False)
    splits = Splits(some_data(40, 0), some_data(12, 1), some_data(20, 2))
    one, other = swept(problem=fixed), swept(problem=Problem({"data": splits}, loss, accuracy))
    assert bits(one) == bits(other)
    assert one.score(RUNS[0]).rows is None


@cache
def uninterrupted(rungs: tuple[int, ...]) -> object:
    return bits(swept(rungs=rungs))


@pytest.mark.parametrize(("nth", "rungs"), [(5, ()), (2, (1, 3)), (5, (1, 3)), (7, (1, 3))])
def test_an_interrupted_sweep_continues_to_equal_bits(tmp_path: Path, rungs: tuple[int, ...], nth: int) -> None:
    calls: list[int] = []

    def signalling(outputs: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        calls.append(1)
        if len(calls) == nth:
            signal.raise_signal(signal.SIGTERM)
        return accuracy(outputs, batch)

    assert not swept(tmp_path, problem=rotated(signalling), rungs=rungs).complete
    again = swept(tmp_path, rungs=rungs, resume=True)
    assert again.complete
    assert bits(again) == uninterrupted(rungs)


def test_the_cuts_stand_in_the_plan(tmp_path: Path) -> None:
    swept(tmp_path)
    plan = read_plan(tmp_path)
    assert plan.cuts == {"data": {"pool": 52, "validation": 12, "groups": None}}
    problem = rotated()
    splits = problem.splits["data"]
    assert splits.rotation is not None
    other = replace(problem, splits={"data": replace(splits, rotation=replace(splits.rotation, n_validation=10))})
    for changed in (other, replace(problem, rotate=False)):
        with pytest.raises(CheckpointError, match="Its seeds validate on other rows now"):
            swept(tmp_path, problem=changed, resume=True)


def test_a_fixed_sweep_does_not_go_on_with_rotation(tmp_path: Path) -> None:
    swept(tmp_path, problem=replace(rotated(), rotate=False))
    assert "cuts" not in json.loads((tmp_path / "plan.json").read_text())["sha256"]
    with pytest.raises(CheckpointError, match="Its seeds validate on other rows now"):
        swept(tmp_path, resume=True)


def test_runs_that_keep_their_last_weights_decide_by_these() -> None:
    runs = [small_run("r1", seed, epochs=4, weights="last") for seed in (0, 1)]
    found = swept(runs=runs)
    for run in runs:
        scores = found.scores[run.name]
        assert scores.deciding is None
        assert found.score(run).validation is scores.validation
        assert found.score(run).rows is not None
