"""A sweep that takes a moment: a tiny network, two ranks and full fine-tuning, two seeds."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.results import Results, plain
from rankwise.results.origin import BaseInfo, DataInfo, Grid, SplitSize
from rankwise.sweeps.choose.rule import Rule, parse_tolerance
from rankwise.sweeps.judged import Choice
from rankwise.sweeps.problem import Problem, Run, Splits, SweepState
from rankwise.sweeps.provenance import Provenance
from rankwise.sweeps.record import make_results
from rankwise.sweeps.run.run import run_sweep
from rankwise.sweeps.run.worker import LocalWorker
from rankwise.train.events import Observers
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training
from rankwise.train.state import TrainingState


def small_model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(dim=-1))


def some_data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)


def loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return F.nll_loss(outputs, batch[1], reduction="none")


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return (outputs.argmax(-1) == batch[1]).float()


def small_problem() -> Problem:
    splits = Splits(some_data(40, 0), some_data(30, 1), some_data(20, 2))
    return Problem({"data": splits}, loss, accuracy, other_tests={"accuracy_elsewhere": some_data(10, 3)})


def small_run(configuration: str, seed: int = 0, lr: float = 0.03, **settings: Any) -> Run:
    """A run of "r2" and the like, or of "full"."""
    r = int(configuration[1:]) if configuration.startswith("r") else None
    name, training = (
        f"{configuration}-lr{lr:g}-s{seed}",
        Training(**{"lr": lr, "batch_size": 8, "epochs": 3, **settings}),
    )
    if r is None:
        member = Member(name=name, seed=seed, modules_to_save=("0", "2"))
        return Run(name, configuration, "full fine-tuning", "full", member, training)
    member = Member(name=name, seed=seed, lora=LoRAConfig(r=r, seed=seed))
    return Run(name, configuration, f"r = {r}", "lora", member, training)


def small_runs() -> list[Run]:
    return [small_run(c, seed, lr) for c in ("r1", "r4", "full") for lr in (0.003, 0.03) for seed in (0, 1)]


def swept(runs: Sequence[Run], problem: Problem | None = None) -> SweepState:
    return run_sweep(small_model(), runs, problem or small_problem(), Observers())


def train_pickled(jobs: Path, into: Path, threads: int) -> None:
    """Train pickled jobs one after another, and pickle their events: for a process elsewhere."""
    torch.set_num_threads(threads)
    events = [
        event
        for job in pickle.loads(jobs.read_bytes())
        for event in LocalWorker(small_model(), small_problem()).train([job])
    ]
    into.write_bytes(pickle.dumps(events))


def typed_results_of(found: SweepState, tolerance: str | float | None = None, **choice: Any) -> Results:
    about = Provenance(
        task="test",
        command="rankwise test",
        config_hash="0" * 64,
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        versions={"python": "3.11"},
        device="cpu",
        data=DataInfo(train=SplitSize(n=40), validation=SplitSize(n=30), test=SplitSize(n=20)),
        grid=Grid(),
        base=BaseInfo(name="base", sha256="0" * 64, parameters=83, metric=0.3),
    )
    rule = Rule(parse_tolerance(tolerance, True), True)
    return make_results(found, small_problem(), rule, about, Choice(**choice), adapters={})


def results_of(found: SweepState, tolerance: str | float | None = None, **choice: Any) -> dict[str, Any]:
    """The content of `results.json`."""
    return plain(typed_results_of(found, tolerance, **choice))


def same_when_gone_on_with(training: Callable[[], PackTraining], state: TrainingState) -> dict[str, Tensor]:
    """Go on from a state after one epoch, to the third, hold it bit for bit against never having stopped, and return
    what both came to."""
    whole, again = training(), training()
    again.restore(state)
    for each in (whole, again):
        while each.epoch < 3:
            each.advance()
    mine, theirs = again.state().tensors, whole.state().tensors
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    return mine
