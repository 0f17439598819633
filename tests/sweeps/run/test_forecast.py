"""What a sweep would do is said beforehand: the packs that it then has, and their time from a few steps."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rankwise.lora.config import LoRAConfig
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.run.forecast import forecast_sweep
from rankwise.sweeps.run.stage import Search
from rankwise.sweeps.run.stages import Stages
from rankwise.train import loop
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Event, Observers
from rankwise.train.settings import Training
from small_sweep import small_model, small_problem

TRAINING = Training(lr=1.0, batch_size=8, epochs=3)
ADAPTERS = [
    Candidate(name=f"r{r}", label="", method="lora", training=TRAINING, lrs=(0.01, 0.03), lora=LoRAConfig(r=r))
    for r in (1, 4)
]
FULL = Candidate(name="full", label="", method="full", training=TRAINING, lrs=(0.001,), modules_to_save=("0", "2"))


def stages(epochs: int = 3, **more: object) -> Stages:
    candidates = [replace(c, training=replace(TRAINING, epochs=epochs)) for c in (*ADAPTERS, FULL)]
    given = {"model": small_model(), "problem": small_problem(), "candidates": candidates, "seeds": (0, 1), **more}
    return Stages(observers=Observers(), **given)  # pyright: ignore[reportArgumentType]


def test_the_packs_are_those_that_train():
    told = forecast_sweep(stages())
    swept = stages().run().swept
    assert {name: i for i, pack in enumerate(told.packs) for name in pack.runs} == swept.packs
    assert [dict(pack.configurations) for pack in told.packs] == [{"r1": 4, "r4": 4}, {"full": 2}]
    # What is planned with is the sum of what runs take alone: the most that a pack can take.
    for pack in told.packs:
        assert 0 < told.base_bytes + pack.bytes <= swept.memory[pack.runs[0]]
    assert told.runs == len(swept.runs)


def test_the_base_stays():
    made = stages()
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    forecast_sweep(made)
    assert all(torch.equal(value, before[key]) for key, value in made.model.state_dict().items())


def test_the_time_is_that_of_all_steps_and_validations(monkeypatch: pytest.MonkeyPatch):
    # Whatever is measured takes a second.
    monkeypatch.setattr(loop.time, "perf_counter", itertools.count().__next__)
    told = forecast_sweep(stages(epochs=7))
    # 40 rows are 5 steps of 8; the validation rows pass at once.
    assert [pack.seconds for pack in told.packs] == [7 * (5 + 1)] * 2
    assert told.seconds == 2 * 7 * 6


def test_the_disk_is_what_a_run_takes_at_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Against the largest size that the run's folder has when a checkpoint is due after every epoch."""
    most = 0

    def watched(self: Observers, event: Event) -> None:
        nonlocal most
        most = max(most, sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors") if file.is_file()))

    monkeypatch.setattr(Observers, "on_event", watched)
    told = forecast_sweep(stages())
    stages(checkpoints=tmp_path, every=CheckpointInterval(epochs=1)).run()
    assert 0 < most <= told.disk_bytes
    assert told.adapter_bytes == sum(pack.adapter_bytes for pack in told.packs[:1]) > 0
    assert told.packs[1].adapter_bytes == 0


def test_a_search_and_what_is_open():
    told = forecast_sweep(stages(problem=problem_to_search(), search=Search(data="part", rungs=(1,)), widen=True))
    assert [(pack.stage, len(pack.runs)) for pack in told.packs] == [
        ("search", 4),
        ("search", 1),
        ("training", 4),
        ("training", 2),
    ]
    assert any("rung" in words for words in told.open)
    assert any("are not counted" in words for words in told.open)
    assert not any("rung" in words or "are not counted" in words for words in forecast_sweep(stages()).open)


def problem_to_search():
    problem = small_problem()
    return replace(problem, splits={**problem.splits, "part": problem.splits["data"]})
