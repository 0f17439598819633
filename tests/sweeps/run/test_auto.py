"""The adaptive plan, walked over runs whose results are made up, and over real ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankwise
from rankwise import LoRAConfig, Training
from rankwise.errors import ConfigError
from rankwise.results import plain
from rankwise.sweeps.candidates.grid import Candidate, runs_of
from rankwise.sweeps.choose.answer import Answer, decide, reference_of
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.choose.configurations import choose_learning_rates
from rankwise.sweeps.choose.rule import Rule, Tolerance
from rankwise.sweeps.plan.plan import fingerprints_of
from rankwise.sweeps.problem import Run, Scores, SweepState
from rankwise.sweeps.run import run as one_stage
from rankwise.sweeps.run.auto import GAIN_SEEDS, SEARCH_SEED, Auto, Walk
from rankwise.sweeps.run.stage import Decisions, Phase, Phases, StageResult
from rankwise.train import loop
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.outcome import Outcome
from small_sweep import accuracy, loss, small_model, some_data

RULE = Rule(Tolerance(of_reference=0.02), True)
ROWS = 1000
TRAINING = Training(lr=1.0, epochs=8)
LRS = (1e-3, 1e-2)


def lora(r: int, target: str = "0") -> Candidate:
    name = f"r{r}" if target == "0" else f"{target}-r{r}"
    config = LoRAConfig(r=r, target_modules=target)
    return Candidate(name=name, label=f"r = {r}", method="lora", training=TRAINING, lrs=LRS, lora=config)


FULL = Candidate(
    name="full",
    label="full fine-tuning",
    method="full",
    training=TRAINING,
    lrs=(1e-4, 1e-3),
    modules_to_save=("0", "1"),
)
RANKS = [lora(r) for r in (1, 2, 4, 8, 16)]


@dataclass
class MadeUp:
    """What the plan asks of the stages of a sweep, answered by a formula.

    Args:
        accuracy: (configuration, learning rate, seed) -> its accuracy; None where the run diverges.
        candidates: What is tried.
        seeds: At the most.
        price: Of a further adapter.
    """

    accuracy: Callable[[str, float, int], float | None]
    candidates: Sequence[Candidate] = (*RANKS, FULL)
    seeds: tuple[int, ...] = tuple(range(8))
    price: float = 1.0
    seconds_before: float = 0.0
    rungs: tuple[int, ...] = ()
    seconds_before: float = 0.0
    phases: list[list[str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
        self.observers = SimpleNamespace(message=self.messages.append)

    def train(self, runs: Sequence[Run]) -> Phases[SweepState]:
        return (yield Phase(runs))

    def followed(self, walk: Walk) -> StageResult:
        phases = Decisions(walk.phases())
        for phase in phases:
            phases.take(self.carried_out(phase))
        return phases.result

    def carried_out(self, phase: Phase) -> SweepState:
        runs = phase.runs
        self.phases.append([run.name for run in runs])
        found = SweepState(runs, {run.name: parameters_of(run) for run in runs}, complete=True)
        for run in runs:
            value = self.accuracy(run.configuration, run.training.lr, run.member.seed)
            status = "diverged" if value is None else "finished"
            found.outcomes[run.name] = Outcome(run.name, {}, status, None, 0, 0, 0, 0.0)
            if value is not None:
                # The first rows are got right, whoever learns; a few others change with the seed.
                hits = (np.arange(ROWS) < value * ROWS).astype(float)
                found.scores[run.name] = Scores(np.roll(hits, run.member.seed), 0.0, np.empty(0), {})
        return found

    def search_rates(
        self, candidates: Sequence[Candidate], seed: int, further: Sequence[str] = ()
    ) -> Phases[tuple[Any, Any, Any]]:
        yield from ()
        assert seed == SEARCH_SEED
        told = [(c.name, lr, self.accuracy(c.name, lr, seed) or 0.0) for c in candidates for lr in c.lrs]
        rates = {c.name: max((value, -lr, lr) for name, lr, value in told if name == c.name)[2] for c in candidates}
        return rates, dict.fromkeys(rates, False), [{"configuration": name, "lr": lr} for name, lr, _ in told]

    def searching(self, candidates: Sequence[Candidate], seed: int) -> tuple[list[Run], tuple[int, ...]]:
        return runs_of(candidates, (seed,)), ()

    def measured_price(self, runs: Sequence[Run]) -> float:
        return self.price


def parameters_of(run: Run) -> int:
    return 2 * 1640 if run.method == "full" else 80 * (run.r or 0)


def rising(first_good: int, full: float = 0.95) -> Callable[[str, float, int], float]:
    """Ranks from this one on do as well as full fine-tuning, smaller ones far worse; the larger rate is the better."""

    def accuracy(name: str, lr: float, seed: int) -> float:
        r = int(name.rpartition("r")[2]) if name != "full" else 99
        return full - (0 if r >= first_good else 0.1) - (0 if lr in (1e-2, 1e-3 if name == "full" else 0) else 0.004)

    return accuracy


def walked(stages: MadeUp, **given: Any) -> tuple[StageResult, Answer]:
    auto = Auto(**{"rule": RULE, "floors": Floors(base=lambda rows: np.zeros(ROWS)), "curve": False, **given})
    found = stages.followed(Walk(stages, auto))  # pyright: ignore[reportArgumentType]
    rates = found.rates or {}
    runs = [run for run in found.swept.runs if run.training.lr == rates[run.configuration]]
    configurations = choose_learning_rates([found.swept.score(run) for run in runs], True)
    reference = next(c for c in configurations if c.name == found.reference)
    if not reference.runs:
        reference = reference_of([c for c in configurations if c.runs], True)
    return found, decide(configurations, reference, RULE, auto.floors, found.path)


def seeds_by_name(found: StageResult) -> dict[str, int]:
    seeds: dict[str, set[int]] = {}
    for run in found.swept.runs:
        seeds.setdefault(run.configuration, set()).add(run.member.seed)
    return {name: len(own) for name, own in seeds.items()}


@pytest.mark.parametrize(
    ("first_good", "answer"), [(1, "r1"), (2, "r2"), (4, "r4"), (8, "r8"), (16, "r16"), (32, "full")]
)
def test_the_answer_is_found_by_bisection(first_good: int, answer: str) -> None:
    stages = MadeUp(rising(first_good))
    found, verdict = walked(stages)
    assert verdict.name == answer
    assert verdict.verdict == ("nothing_smaller" if answer == "full" else "shown")
    assert {*stages.phases[0]} == {f"{name}-s{seed}" for name in ("r4-lr0.01", "full-lr0.001") for seed in range(3)}
    assert found.path is not None
    assert found.path[0] == "r4"
    assert seeds_by_name(found).keys() == {*found.path, "full"}, "only what the path asks for"
    assert set(seeds_by_name(found).values()) == {3}
    runs = len(found.swept.runs)
    assert any(f"trained {runs + 4} runs (4 to find learning rates)" in note for note in found.swept.notes)


def test_rates_are_searched_at_the_middle_and_the_reference_only() -> None:
    stages = MadeUp(rising(1))
    found, _ = walked(stages)
    assert [one["configuration"] for one in found.searched] == ["r4", "r4", "full", "full"]
    assert {run.training.lr for run in found.swept.runs if run.method == "lora"} == {1e-2}, "the middle's rate"


def test_a_size_that_fails_is_tried_at_a_neighbouring_rate() -> None:
    """r = 2 learns at the smaller rate only."""

    def accuracy(name: str, lr: float, seed: int) -> float:
        return 0.8 if (name == "r2" and lr == 1e-2) or name == "r1" else rising(1)(name, lr, seed)

    found, answer = walked(MadeUp(accuracy))
    assert answer.name == "r2"
    assert {run.training.lr for run in found.swept.runs if run.configuration == "r2"} == {1e-2, 1e-3}


@pytest.mark.parametrize(("price", "seeds"), [(1.0, 1), (0.1, 3)])
def test_a_neighbouring_rate_that_does_no_better_is_dropped_after_a_seed(price: float, seeds: int) -> None:
    """Where adapters are cheap, all starting seeds train together."""
    found, answer = walked(MadeUp(rising(4), price=price), curve=False)
    assert answer.name == "r4"
    tried = [run for run in found.swept.runs if run.configuration == "r2" and run.training.lr == 1e-3]
    assert len(tried) == seeds


def test_where_adapters_are_cheap_all_train_together() -> None:
    stages = MadeUp(rising(4), price=0.1)
    found, answer = walked(stages, curve=None)
    assert answer.name == "r4"
    assert len(stages.phases[0]) == 6 * 3
    assert seeds_by_name(found) == dict.fromkeys(("r1", "r2", "r4", "r8", "r16", "full"), 3)
    assert found.path == ("r4", "r1", "r2")


def test_further_seeds_are_for_sizes_that_can_still_be_the_answer() -> None:
    """r = 4 is shown at once, so larger ones keep the starting seeds; r = 2 is near the edge."""

    def accuracy(name: str, lr: float, seed: int) -> float:
        return 0.95 - (0.004 + 0.02 * (seed % 2) if name == "r2" else 0.1 if name == "r1" else 0)

    found, _ = walked(MadeUp(accuracy, price=0.1, seeds=tuple(range(16))))
    seeds = seeds_by_name(found)
    assert seeds["r2"] > 3
    assert {seeds[name] for name in ("r4", "r8", "r16")} == {3}


def test_no_further_seeds_for_what_is_shown_or_shown_not_to_be() -> None:
    """r = 4, the middle, is near the edge; the others are decided with the starting seeds."""

    def accuracy(name: str, lr: float, seed: int) -> float:
        return 0.95 - (0.004 + 0.02 * (seed % 2) if name == "r4" else 0.1 if name in ("r1", "r2") else 0)

    found, _ = walked(MadeUp(accuracy, price=0.1, seeds=tuple(range(16))))
    seeds = seeds_by_name(found)
    assert seeds["r4"] > 3
    assert {seeds[name] for name in ("r1", "r2", "r8", "r16")} == {3}


@pytest.mark.parametrize("helps", [False, True])
def test_a_neighbouring_rate_that_will_be_asked_for_trains_beside_seeds(helps: bool) -> None:
    """r = 4, the middle, is near the edge, so r = 2 fails if more seeds show r = 4: no phase is for its rate alone."""

    def accuracy(name: str, lr: float, seed: int) -> float:
        if lr == 1e-3 and name != "full":
            return 0.95 if helps and name == "r2" else 0.7
        return 0.95 - (0.002 + 0.015 * (seed % 2) if name == "r4" else 0.1 if name in ("r1", "r2") else 0)

    stages = MadeUp(accuracy, price=0.1, seeds=tuple(range(16)))
    found, answer = walked(stages)
    assert answer.name == ("r2" if helps else "r4")
    tried = {f"r2-lr0.001-s{seed}" for seed in range(3)}
    (phase,) = [phase for phase in stages.phases if tried & {*phase}]
    assert tried < {*phase}
    assert {name.split("-")[0] for name in phase} == {"r2", "r4", "full"}
    said = [message for message in stages.messages if "neighbouring" in message]
    assert sum("r = 2 at" in message for message in said) == 1, "though several phases give seeds"
    assert said[0].endswith("seeds of r = 4 and full fine-tuning, and r = 2 at a neighbouring learning rate.")
    alone, without = walked(MadeUp(accuracy, price=1.0, seeds=tuple(range(16))))
    assert (without.verdict, without.name) == (answer.verdict, answer.name), "as where each size trains alone"
    assert (found.rates or {})["r2"] == (alone.rates or {})["r2"]


def test_the_curve_is_completed_after_the_decision() -> None:
    bare, _ = walked(MadeUp(rising(4)))
    stages = MadeUp(rising(4))
    found, answer = walked(stages, curve=True)
    assert answer.name == "r4"
    assert found.path == bare.path, "what completes the curve has no chance of its own"
    assert seeds_by_name(found) == dict.fromkeys(("r1", "r2", "r4", "r8", "r16", "full"), 3)
    assert {name.split("-")[0] for name in stages.phases[-1]} == {"r8", "r16"}


def test_an_open_size_gets_seeds_and_so_does_the_reference() -> None:
    def accuracy(name: str, lr: float, seed: int) -> float:
        # Near the edge, and with the seeds' luck.
        return 0.95 - (0.004 + 0.02 * (seed % 2) if name == "r4" else 0.1 if name in ("r1", "r2") else 0)

    stages = MadeUp(accuracy, seeds=tuple(range(16)))
    found, answer = walked(stages)
    seeds = seeds_by_name(found)
    assert 3 < seeds["r4"] <= 16
    assert seeds["full"] == seeds["r4"]
    assert answer.comparisons["r4"].n_seeds == seeds["r4"]
    assert all("r4-" in " ".join(phase) for phase in stages.phases if "full-" in " ".join(phase)), "in one phase"


def test_each_kind_has_a_ladder() -> None:
    candidates = [*RANKS, *(lora(r, "1") for r in (1, 2, 4)), FULL]

    def accuracy(name: str, lr: float, seed: int) -> float:
        return rising(8)(name, lr, seed) if "-" not in name else rising(4)(name, lr, seed)

    found, answer = walked(MadeUp(accuracy, candidates))
    assert {one["configuration"] for one in found.searched} == {"r4", "1-r2", "full"}
    assert answer.name == "1-r4", "the smallest of both"
    assert found.path is not None
    assert {"r8", "1-r4", "1-r2", "r4"} <= {*found.path}


def test_without_a_baseline_the_largest_is_the_reference() -> None:
    found, answer = walked(MadeUp(rising(2), RANKS))
    assert (answer.reference, answer.name) == ("r16", "r2")
    assert "r16" not in (found.path or ())


def test_one_size_alone() -> None:
    found, answer = walked(MadeUp(rising(2), [RANKS[0]]))
    assert answer.reference == "r1"
    assert seeds_by_name(found) == {"r1": 3}


@pytest.mark.parametrize("price", [0.1, 1.0])
@pytest.mark.parametrize("max_runs", range(10, 34, 3))
def test_no_more_runs_than_allowed(max_runs: int, price: float) -> None:
    found, answer = walked(MadeUp(rising(4), price=price), max_runs=max_runs, curve=None)
    runs = len(found.swept.runs) + len(found.searched)
    assert 10 <= runs <= max_runs
    unlimited, without = walked(MadeUp(rising(4), price=price), curve=None)
    if runs < len(unlimited.swept.runs) + len(unlimited.searched):
        assert any(f"{runs} runs, of {max_runs} allowed" in note for note in found.swept.notes)
    else:
        assert answer == without


def test_nothing_new_begins_after_the_minutes_allowed() -> None:
    """The first comparison, without which there would be no answer, aside."""
    found, _ = walked(MadeUp(rising(4)), max_minutes=1e-9, curve=True)
    assert seeds_by_name(found) == {"r4": 3, "full": 3}
    assert any("minutes, of 1e-09 allowed, before r = 1 was decided" in note for note in found.swept.notes)


def test_larger_ones_than_allowed_are_left_out_of_the_decision() -> None:
    found, answer = walked(MadeUp(rising(8)), max_parameters=4 * 80)
    assert found.path is not None
    assert {*found.path} <= {"r1", "r2", "r4"}
    assert answer.name == "full"


def test_where_nothing_is_gained_seeds_end_early() -> None:
    base = np.roll((np.arange(ROWS) < 0.95 * ROWS).astype(float), 1)
    found, answer = walked(MadeUp(rising(1)), floors=Floors(base=lambda rows: base))
    assert (answer.verdict, answer.name) == ("no_gain", "base")
    assert seeds_by_name(found) == {"r4": GAIN_SEEDS, "full": GAIN_SEEDS}


def lost(which: str, seeds: Sequence[int], first_good: int = 1) -> Callable[[str, float, int], float | None]:
    def accuracy(name: str, lr: float, seed: int) -> float | None:
        return None if name == which and seed in seeds else rising(first_good)(name, lr, seed)

    return accuracy


@pytest.mark.parametrize("seeds", [(0,), (1, 2), (0, 1, 2)])
def test_a_size_that_loses_a_seed_is_not_the_answer(seeds: tuple[int, ...]) -> None:
    found, answer = walked(MadeUp(lost("r4", seeds)))
    assert answer.name == "r8"
    assert "r4" not in (found.path or ())


def test_a_size_that_loses_a_seed_at_one_rate_has_another() -> None:
    def accuracy(name: str, lr: float, seed: int) -> float | None:
        return None if name == "r2" and lr == 1e-2 and seed == 1 else rising(2)(name, lr, seed)

    _, answer = walked(MadeUp(accuracy))
    assert answer.name == "r2"


@pytest.mark.parametrize("which", ["r4", "full"])
def test_a_seed_that_is_lost_later_ends_nothing(which: str) -> None:
    """It is not asked for again and again."""

    def accuracy(name: str, lr: float, seed: int) -> float | None:
        if name == which and seed == 3:
            return None
        return 0.95 - (0.004 + 0.02 * (seed % 2) if name in ("r4", "r8", "r16") else 0)

    found, _ = walked(MadeUp(accuracy))
    assert len(found.swept.runs) <= 6 * 2 * 8


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_a_reference_that_loses_seeds_ends_nothing(seeds: tuple[int, ...]) -> None:
    found, answer = walked(MadeUp(lost("full", seeds, 4)))
    assert len(found.swept.runs) <= 6 * 2 * 8
    assert answer.verdict in ("shown", "undecided", "nothing_smaller")


def test_all_that_diverges_ends_too() -> None:
    stages = MadeUp(lambda name, lr, seed: None)
    walk = Walk(stages, Auto(rule=RULE, floors=Floors(), curve=True))  # pyright: ignore[reportArgumentType]
    found = stages.followed(walk)
    assert not found.swept.scores
    assert found.swept.complete


GIVEN: dict[str, Any] = {
    "train": some_data(64, 0),
    "validation": some_data(400, 1),
    "test": some_data(40, 2),
    "loss": loss,
    "metric": accuracy,
    "metric_name": "accuracy",
    "training": Training(lr=1.0, batch_size=8, epochs=4),
    "lrs": (0.01, 0.03),
    "seeds": 4,
    "progress": "quiet",
}


def sweep(**more: Any) -> rankwise.Sweep:
    return rankwise.sweep(small_model(), (1, 2, 3), **{**GIVEN, **more})


def comparable(found: rankwise.Sweep) -> Mapping[str, Any]:
    results = {k: v for k, v in plain(found.results).items() if k not in ("seconds", "started", "config_hash")}
    runs = [{k: v for k, v in run.items() if k not in ("seconds", "adapter")} for run in results["runs"]]
    answer = {k: v for k, v in results["answer"].items() if k != "adapter"}
    return results | {"runs": runs, "answer": answer}


def test_base_and_data_are_hashed_once_for_all_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []

    def taking(model: nn.Module, problem: Any) -> dict[str, str]:
        taken.append(problem)
        return fingerprints_of(model, problem)

    monkeypatch.setattr(one_stage, "fingerprints_of", taking)
    found = sweep()
    assert found.results["grid"]["search"], "a phase of its own"
    assert len(taken) == 1


def test_a_sweep_is_adaptive_unless_told_otherwise() -> None:
    results = sweep().results
    searched = results["grid"]["search"]
    assert {one["configuration"] for one in searched} == {"r2", "full"}
    assert {one["seed"] for one in searched} == {SEARCH_SEED}
    assert not any(run["seed"] == SEARCH_SEED for run in results["runs"])
    assert {"r2", "full"} <= {run["configuration"] for run in results["runs"]}
    assert any(note.startswith("The adaptive plan trained") for note in results["notes"])
    assert results["answer"]["verdict"] in ("shown", "undecided", "nothing_smaller")


class Interrupting:
    """Counts epochs of packs, and interrupts before one of them."""

    def __init__(self) -> None:
        self.by_step, self.calls, self.at = loop.PackTraining.by_step, 0, 0

    def __call__(self, training: loop.PackTraining) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.by_step(training)


@pytest.fixture(scope="module")
def epochs() -> Iterator[Interrupting]:
    counted = Interrupting()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.PackTraining, "by_step", lambda self: counted(self))
        # Measured, it would differ from machine to machine.
        patch.setattr("rankwise.sweeps.run.stages.Stages.measured_price", lambda self, runs: 1.0)
        yield counted


@pytest.fixture(scope="module")
def left_alone(epochs: Interrupting) -> tuple[rankwise.Sweep, int]:
    """What the sweep gives when it is left alone, and its packs' epochs."""
    epochs.calls = epochs.at = 0
    return sweep(), epochs.calls


@pytest.mark.parametrize(
    "when", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, pytest.param(0.6, marks=pytest.mark.slow), 0.95]
)
def test_resumed_it_gives_the_same(
    tmp_path: Path, epochs: Interrupting, left_alone: tuple[rankwise.Sweep, int], when: float
) -> None:
    expected, n = left_alone
    out = tmp_path / "out"
    epochs.calls, epochs.at = 0, 1 + int(when * n)
    with suppress(KeyboardInterrupt):
        assert not sweep(out=out, every=CheckpointInterval(1, None)).results["complete"]
    assert epochs.calls >= epochs.at
    epochs.at = 0
    found = sweep(out=out, resume=True)
    assert comparable(found) == comparable(expected)
    for name, outcome in expected.swept.outcomes.items():
        state = found.swept.outcomes[name].state
        assert all(torch.equal(value, state[key]) for key, value in outcome.state.items())


def test_too_few_runs_are_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_runs is 9; .* takes 10 runs") as caught:
        sweep(max_runs=9, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_rungs_are_for_learning_rates_only() -> None:
    """Sizes, whose runs decide, all come to their end."""
    found = sweep(rungs=(1, 2), seeds=3)
    assert "pruned" in {one["status"] for one in found.results["grid"]["search"]}
    assert {run["status"] for run in found.results["runs"]} == {"finished"}


def test_minutes_before_a_resumption_count() -> None:
    stages = MadeUp(rising(4), seconds_before=120.0)
    found, _ = walked(stages, max_minutes=1.5, curve=True)
    assert seeds_by_name(found) == {"r4": 3, "full": 3}
    assert any("2 minutes, of 1.5 allowed" in note for note in found.swept.notes)
