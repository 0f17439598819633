"""What a sweep would do is said beforehand: the packs that it then has, and their time from a few steps."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rankwise.lora.config import LoRAConfig
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.plan import batching, fitting
from rankwise.sweeps.plan.plan import make_plan, read_plan, write_plan
from rankwise.sweeps.plan.probing import Probe, probe
from rankwise.sweeps.run import forecast
from rankwise.sweeps.run.forecast import SAVED, forecast_sweep
from rankwise.sweeps.run.stage import Search
from rankwise.sweeps.run.stages import Stages
from rankwise.train import loop
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Event, Observers
from rankwise.train.loop import PackTraining
from rankwise.train.machine.memory import KERNELS_KEPT
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
    monkeypatch.setattr(
        forecast, "probe", lambda *given: Probe(setup=3, counting=0, step=1, row=1 / 8, bytes=9, peak=None)
    )
    told = forecast_sweep(stages(epochs=7))
    # 40 rows are 5 steps of 8; the 30 validation rows pass after each epoch, and at the end with 20 + 10 of test data.
    assert [pack.seconds for pack in told.packs] == [3 + 7 * (5 + 30 / 8) + 60 / 8] * 2
    assert told.seconds == told.planning + 2 * (3 + 7 * 8.75 + 7.5)
    assert told.planning > 0


def test_what_is_timed_are_steps_of_all_sizes(monkeypatch: pytest.MonkeyPatch):
    # Whatever is measured takes a second.
    monkeypatch.setattr(loop.time, "perf_counter", itertools.count().__next__)
    made = stages()
    runs = made.expected()[0].runs[:2]
    places: list[float] = []

    class Watched(PackTraining):
        def timed_step(self, place: float) -> float:
            places.append(place)
            return super().timed_step(place)

    monkeypatch.setattr(fitting, "PackTraining", Watched)
    cost = probe(lambda: fitting.pack_training(made.model, runs, made.problem), torch.device("cpu"), 1000)
    assert (cost.step, cost.row) == (1, 1 / 8), "8 of the 30 validation rows are enough"
    assert cost.bytes > 0
    assert places == [0.0, *[1 / 6, 1 / 2, 5 / 6] * 3], "one to warm up; 10 steps are 1% of 1,000"


def test_what_is_measured_once_is_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = stages(checkpoints=tmp_path)
    forecast_sweep(made)
    known = dict(made.probes)
    assert len(known) == 2, "adapters of one kind, and full fine-tuning"

    def never(*given: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(fitting, "pack_training", never)
    runs = made.expected()[0].runs
    write_plan(tmp_path, make_plan(made.model, runs, made.problem, (), probes=made.probes))
    assert read_plan(tmp_path).probes == known
    # A later stage of a resumed run, which has measured nothing, knows what its first stage's plan has.
    resumed = stages(checkpoints=tmp_path, resume=True)
    monkeypatch.undo()
    resumed.run()
    assert resumed.probes == known


def test_what_ended_before_stays_in_memory():
    told = forecast_sweep(stages())
    assert told.peak_bytes == max(pack.peak_bytes for pack in told.packs) > told.base_bytes
    made = stages()
    small = replace(FULL, lrs=(0.001, 0.003, 0.01))
    with pytest.MonkeyPatch.context() as patched:
        # Trained one after another, all alike but for what is there already.
        patched.setattr(batching, "LEAST", float("inf"))
        patched.setattr(forecast, "probe", lambda *given: Probe(0, 0, 0, 0, 0, 1))
        packs = forecast_sweep(replace(made, candidates=[small])).packs
    grown = {second.peak_bytes - first.peak_bytes for first, second in itertools.pairwise(packs)}
    assert grown == {SAVED * (6 * 8 + 8 + 8 * 3 + 3)}


def test_kernels_that_further_sizes_of_batches_make_are_counted_once(monkeypatch: pytest.MonkeyPatch):
    def peaks(made: int, *, already: int = 0) -> list[int]:
        monkeypatch.setattr(forecast, "kernel_bytes", lambda: already)
        cost = Probe(0, 0, 0, 0, 0, 1 << 30, kernels=already, kernels_made=made)
        monkeypatch.setattr(forecast, "probe", lambda *given: cost)
        return [pack.peak_bytes for pack in forecast_sweep(stages()).packs]

    none, few, many = peaks(0), peaks(1000), peaks(KERNELS_KEPT)
    assert few[-1] - none[-1] == 2 * 1000, "of the adapters' pack and of the other"
    assert many[-1] - none[-1] == KERNELS_KEPT, "at most"
    assert peaks(1000, already=KERNELS_KEPT) == none, "what had been made is in what was measured"


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
