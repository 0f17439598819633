"""The state of a pack in training: going on from it gives what never having stopped gives, bit for bit."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import CheckpointError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.train.loop import PackTraining
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.train.settings import Training
from rankwise.train.state import TrainingState


def make_model(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3), nn.LogSoftmax(dim=-1)).to(
            dtype
        )


def make_data(n: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x, (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)


def loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return F.nll_loss(outputs, batch[1], reduction="none")


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return (outputs.argmax(-1) == batch[1]).to(outputs.dtype)


def run(
    name: str, r: int | None = 2, seed: int = 0, *, dropout: float = 0.0, **settings: Any
) -> tuple[Member, Training]:
    whole = () if r else ("0", "3")
    lora = LoRAConfig(r=r, seed=seed, dropout=dropout) if r else None
    training = Training(**{"lr": 1e-2, "batch_size": 8, "epochs": 4, **settings})
    return Member(name=name, seed=seed, lora=lora, modules_to_save=whole), training


MIXED = [
    run("hasty", r=3, lr=3.0, patience=1, epochs=30),
    run("wild", r=9, lr=1e200, epochs=9),
    run("plain", dropout=0.3),
    run("other-seed", seed=5, weights="last"),
    run("large", r=17, epochs=5),
    run("warm", r=4, schedule="cosine", warmup=5, epochs=6, weight_decay=0.1),
    run("clipped", clip=0.05, epochs=14, schedule="plateau", lr=1.0),
    run("full", r=None, epochs=3),
]


def started(dtype: torch.dtype, runs: Sequence[tuple[Member, Training]] = MIXED) -> PackTraining:
    data = make_data(22, 0, dtype), make_data(10, 1, dtype)
    return PackTraining(make_model(dtype), runs, *data, loss, accuracy)


def went_on(training: PackTraining, dtype: torch.dtype) -> PackTraining:
    """A new object at the place where the given one is, through tensors and JSON alone."""
    state = training.state()
    tensors = {key: value.clone() for key, value in state.tensors.items()}
    other = started(dtype)
    other.restore(TrainingState(tensors, json.loads(json.dumps(state.plain))))
    return other


def finish(training: PackTraining) -> tuple[list[EpochPoint], list[Outcome]]:
    points: list[EpochPoint] = []
    outcomes: list[Outcome] = []
    while not training.done:
        epoch = training.advance()
        assert epoch is not None
        points += epoch.points
        outcomes += epoch.ended
    return points, outcomes


def bits(found: tuple[list[EpochPoint], list[Outcome]]) -> object:
    """Everything but the seconds; NaN made equal to itself."""
    points, outcomes = found
    return (
        [str(point) for point in points],
        [(o.name, o.status, o.reason, o.best_step, o.steps, o.epochs) for o in outcomes],
        [(o.name, key, value.numpy().tobytes()) for o in outcomes for key, value in sorted(o.state.items())],
    )


@pytest.mark.parametrize(
    ("dtype", "apart"),
    [(torch.float32, 8), (torch.float64, 20), pytest.param(torch.float32, 1, marks=pytest.mark.slow)],
)
def test_going_on_after_any_step_is_as_if_nothing_had_been(dtype: torch.dtype, apart: int) -> None:
    """An epoch has three steps, so that every eighth and every twentieth step fall on all places in it."""
    uninterrupted = started(dtype)
    whole = finish(uninterrupted)
    assert {o.status for o in whole[1]} == {"finished", "diverged"}
    training, points, outcomes = started(dtype), [], []
    for step in range(1, uninterrupted.steps, apart):
        while training.steps < step:
            epoch = training.advance(lambda step=step: training.steps >= step)
            if epoch is not None:
                points += epoch.points
                outcomes += epoch.ended
        rest = finish(went_on(training, dtype))
        assert bits((points + rest[0], outcomes + rest[1])) == bits(whole), step


def test_going_on_after_every_step_is_as_if_nothing_had_been() -> None:
    whole = finish(started(torch.float32))
    training, points, outcomes = started(torch.float32), [], []
    while not training.done:
        training = went_on(training, torch.float32)
        epoch = training.advance(lambda: True)
        if epoch is not None:
            points += epoch.points
            outcomes += epoch.ended
    assert bits((points, outcomes)) == bits(whole)


def test_the_state_holds_nothing_of_the_base_and_is_no_view() -> None:
    training = started(torch.float32)
    training.advance()
    state = training.state()
    names = state.plain["names"]
    assert {*names} == {member.name for member, _ in MIXED} - {"wild"}
    for key in state.tensors:
        kind, k, *_ = key.split("/")
        low_rank = kind == "vector" or names[int(k)] != "full"
        assert not low_rank or kind == "vector" or key.endswith((".A", ".B"))
    before = {key: value.clone() for key, value in state.tensors.items()}
    training.advance()
    assert all(torch.equal(value, before[key]) for key, value in state.tensors.items())


def test_seconds_go_on() -> None:
    training = started(torch.float32)
    training.advance()
    state = training.state()
    other = started(torch.float32)
    other.restore(TrainingState(state.tensors, {**state.plain, "seconds": 1000.0}))
    assert all(outcome.seconds > 1000 for outcome in finish(other)[1])


def test_pruned_runs_leave_with_what_they_have() -> None:
    runs = [run("a"), run("b", weights="last"), run("c", seed=1)]
    training, alone = started(torch.float64, runs), started(torch.float64, runs[2:])
    for _ in range(2):
        training.advance()
        alone.advance()
    kept = training.final_states()
    weights = {member.name: settings.weights for member, settings in runs}
    pruned, left = training.state().prune({"a": "too slow", "b": "too fast"}, weights)
    assert [(o.name, o.status, o.reason, o.epochs, o.steps) for o in pruned] == [
        ("a", "pruned", "too slow", 2, 6),
        ("b", "pruned", "too fast", 2, 6),
    ]
    assert all(torch.equal(value, kept[o.name][key]) for o in pruned for key, value in o.state.items())
    assert left is not None
    assert left.prune({"c": "too late"}, weights)[1] is None
    training = started(torch.float64, runs)
    training.restore(left)
    assert training.names == ["c"]
    (ours,), (theirs,) = finish(training)[1], finish(alone)[1]
    for key, value in ours.state.items():
        torch.testing.assert_close(value, theirs.state[key], rtol=1e-9, atol=1e-12)
    assert training.names == []
    assert training.done


def test_a_state_of_other_runs_is_refused() -> None:
    state = started(torch.float32).state()
    with pytest.raises(CheckpointError, match=r"The state has hasty, .*, which this pack does not train"):
        started(torch.float32, MIXED[2:3]).restore(state)
