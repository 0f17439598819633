"""Packs sized to memory: measured before training, cut to a limit, split where memory runs out; the results stay."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.show.live import progress
from rankwise.sweeps.plan.fitting import COPIES, bytes_of_runs, cut_to_fit, limit_of, pack_training
from rankwise.sweeps.problem import Problem, Run, Splits, SweepState
from rankwise.sweeps.run.run import WithinSweep, run_sweep
from rankwise.train.checkpoints import CheckpointInterval
from small_sweep import accuracy, results_of, small_model, small_problem, small_run


def wide_problem() -> Problem:
    """The small problem in float64."""
    problem = small_problem()
    splits = {
        name: Splits(*((s[0].double(), s[1]) for s in (given.train, given.validation, given.test)))
        for name, given in problem.splits.items()
    }
    return replace(problem, splits=splits, other_tests={})


def ranks(*names: str) -> list[Run]:
    return [small_run(name, seed, lr) for name in names for lr in (0.003, 0.03) for seed in (0, 1)]


def run(model: nn.Module, runs: Sequence[Run], problem: Problem | None = None, **given: Any) -> SweepState:
    within = WithinSweep(memory=given.pop("memory", None))
    return run_sweep(model, runs, problem or wide_problem(), progress("plain"), within=within, **given)


def same(ours: SweepState, theirs: SweepState) -> None:
    assert ours.outcomes.keys() == theirs.outcomes.keys()
    for name, outcome in theirs.outcomes.items():
        mine = ours.outcomes[name]
        assert (mine.status, mine.best_step, mine.steps) == (outcome.status, outcome.best_step, outcome.steps)
        for key, value in outcome.state.items():
            torch.testing.assert_close(mine.state[key], value, rtol=1e-10, atol=1e-12)
    curve = {(p.run, p.step): p for p in theirs.curve}
    assert curve.keys() == {(p.run, p.step) for p in ours.curve}
    assert len(curve) == len(ours.curve)
    for point in ours.curve:
        other = curve[point.run, point.step]
        assert point.train_loss == pytest.approx(other.train_loss, 1e-9)
        assert point.grad_norm == pytest.approx(other.grad_norm, 1e-6)


def test_a_pack_needs_no_more_than_its_runs_alone() -> None:
    model, problem = small_model(), small_problem()
    runs = ranks("r1", "r4", "r16")
    needed = bytes_of_runs(model, runs, problem)
    together = pack_training(model, runs, problem).peak_bytes()
    steps = {
        name: n - COPIES * 4 * r * (6 + 8 + 8 + 3)
        for (name, n), r in zip(needed.items(), (1,) * 4 + (4,) * 4 + (16,) * 4, strict=True)
    }
    # All of one kind take the same step, that of the largest.
    assert len(set(steps.values())) == 1
    assert steps["r1-lr0.003-s0"] == pack_training(model, [runs[-1]], problem).peak_bytes() > 0
    assert together <= sum(steps.values())


def test_larger_batches_need_more() -> None:
    runs = [small_run("r4"), small_run("r4", lr=0.01, batch_size=32)]
    small, large = bytes_of_runs(small_model(), runs, small_problem()).values()
    assert large > small


def test_measuring_trains_nothing() -> None:
    training = pack_training(small_model(), ranks("r4"), small_problem())
    before = training.state().tensors
    training.peak_bytes()
    # Before the first epoch nothing is cross-fitted: NaN.
    torch.testing.assert_close(training.state().tensors, before, rtol=0, atol=0, equal_nan=True)
    assert training.steps == 0


@pytest.mark.parametrize("limit", [0, 5, 6, 100, None])
def test_every_run_is_in_one_pack(limit: int | None) -> None:
    packs = cut_to_fit([3, 3, 2, 9, 1], lambda one: one, limit)
    assert [one for pack in packs for one in pack] == [3, 3, 2, 9, 1]
    assert all(len(pack) == 1 or sum(pack) <= (limit or 18) for pack in packs)


def test_the_default_limit_is_what_is_free() -> None:
    limit = limit_of(small_model(), None)
    assert limit is not None
    assert limit > 1_000_000
    assert limit_of(small_model(), 7) == 7


def test_a_limit_makes_packs_and_changes_no_result(tmp_path: Path) -> None:
    runs = ranks("r1", "r4")
    whole = run(small_model().double(), runs)
    needed = bytes_of_runs(small_model().double(), runs, wide_problem())
    parts = run(small_model().double(), runs, memory=3 * max(needed.values()), checkpoints=tmp_path)
    assert set(whole.packs.values()) == {0}
    assert len(set(parts.packs.values())) == 2
    plan = json.loads((tmp_path / "plan.json").read_text())["content"]
    assert plan["memory"] == needed
    assert [len(pack) for pack in plan["packs"]] == [5, 3]
    assert all(sum(needed[name] for name in pack) <= plan["limit"] for pack in plan["packs"])
    same(parts, whole)


def test_the_plan_is_followed_whatever_is_free_now(tmp_path: Path) -> None:
    runs, problem, calls = ranks("r1", "r4"), wide_problem(), []

    def interrupting(outputs: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return accuracy(outputs, batch)

    first = run(
        small_model().double(),
        runs,
        replace(problem, metric=interrupting),
        memory=1,
        checkpoints=tmp_path,
        every=CheckpointInterval(epochs=1),
    )
    assert not first.complete
    again = run(small_model().double(), runs, memory=1 << 40, checkpoints=tmp_path, resume=True)
    assert again.complete
    assert len(set(again.packs.values())) == len(runs)
    same(again, run(small_model().double(), runs))


class Narrow(nn.Module):
    """Layers that can't hold more than so many rows in training."""

    def __init__(self, rows: int, evaluated: int = 1 << 40) -> None:
        super().__init__()
        self.layers = small_model().double()
        self.rows, self.evaluated = rows, evaluated
        self.refused = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[2](self.layers[1](self.layers[0](x)))
        if len(y) > (self.rows if torch.is_grad_enabled() else self.evaluated):
            self.refused += 1
            raise torch.OutOfMemoryError("no memory is left")
        return self.layers[3](y)


def of_narrow(runs: Sequence[Run]) -> list[Run]:
    return [
        replace(
            one, member=replace(one.member, modules_to_save=tuple(f"layers.{w}" for w in one.member.modules_to_save))
        )
        for one in runs
    ]


@cache
def of_eight(rows: int = 1 << 40, rungs: tuple[int, ...] = ()) -> SweepState:
    """The sweep of eight runs over a model that holds so many rows, which nothing interrupts."""
    return run(Narrow(rows), of_narrow(ranks("r1", "r4")), rungs=rungs)


@pytest.mark.parametrize("rungs", [(), (1, 2)])
def test_running_out_of_memory_splits_the_pack(rungs: tuple[int, ...]) -> None:
    runs = of_narrow(ranks("r1", "r4"))
    model = Narrow(3 * 8)
    split = run(model, runs, rungs=rungs)
    assert model.refused > 0
    assert split.complete
    assert max(list(split.packs.values()).count(i) for i in set(split.packs.values())) <= 4
    assert any("Memory ran out for 8 runs" in note for note in split.notes)
    same(split, of_eight(rungs=rungs))


def failing_later(after: int) -> Narrow:
    """A model whose memory gets narrow only after some steps."""
    model = Narrow(1 << 40)
    plain, steps = model.forward, []

    def forward(x: Tensor) -> Tensor:
        steps.append(torch.is_grad_enabled())
        model.rows = 3 * 8 if sum(steps) > after else 1 << 40
        return plain(x)

    model.forward = forward
    return model


def test_nothing_is_lost_in_the_middle_of_an_epoch() -> None:
    runs = of_narrow(ranks("r1", "r4"))
    same(run(failing_later(9), runs), of_eight())


def stopping(nth: int) -> Callable[[Tensor, tuple[Tensor, ...]], Tensor]:
    calls: list[int] = []

    def metric(outputs: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        calls.append(1)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return accuracy(outputs, batch)

    return metric


@pytest.mark.parametrize("nth", [2, 5])
def test_a_split_pack_is_resumed_bit_for_bit(tmp_path: Path, nth: int) -> None:
    runs = of_narrow(ranks("r1", "r4"))
    alone = of_eight(3 * 8)
    first = run(
        Narrow(3 * 8),
        runs,
        replace(wide_problem(), metric=stopping(nth)),
        checkpoints=tmp_path,
        every=CheckpointInterval(epochs=1),
    )
    assert not first.complete
    again = run(Narrow(3 * 8), runs, checkpoints=tmp_path, resume=True)
    assert again.packs == alone.packs
    for name, outcome in alone.outcomes.items():
        assert all(torch.equal(value, again.outcomes[name].state[key]) for key, value in outcome.state.items())


def test_one_run_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(PackError, match=r'"r4-lr0.03-s0" alone does not fit .* Make its batches smaller'):
        run(failing_later_alone(), of_narrow([small_run("r4")]))


def failing_later_alone() -> Narrow:
    model = failing_later(9)
    plain = model.forward

    def forward(x: Tensor) -> Tensor:
        if model.rows == 3 * 8 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("no memory is left")
        return plain(x)

    model.forward = forward
    return model


def test_evaluation_passes_fewer_rows() -> None:
    runs = of_narrow(ranks("r1", "r4"))
    narrow = Narrow(1 << 40, evaluated=8 * 7)
    found = run(narrow, runs)
    assert narrow.refused > 0
    whole = of_eight()
    same(found, whole)
    for name, scores in whole.scores.items():
        assert (found.scores[name].test == scores.test).all()


def test_the_results_hold_the_packs_memory() -> None:
    runs = [small_run("r1"), small_run("full")]
    found = run(small_model(), runs, small_problem())
    needed = bytes_of_runs(small_model(), runs, small_problem())
    base = 4 * 83
    told = {each["name"]: each["peak_memory_bytes"] for each in results_of(found)["runs"]}
    assert told == {name: base + n for name, n in needed.items()}
