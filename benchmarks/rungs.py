"""Which rank, with rungs and without: what the answer costs in runs of peft, and how often it is the same.

    python benchmarks/rungs.py [--data DIR] [--repeats 10] [--epochs 30] [--rungs 3,8] [--record] [--notes FILE]

16 configurations on the digits, r 1, 4, 16, 64 with four learning rates each, one seed a repeat, without a baseline. In
every repeat three things take turns: one run of peft (r = 8, evaluated after every epoch), the full sweep, and the sweep
with rungs; all for the same number of epochs, without early stopping. The sweeps are `sweeps.run.run.run_sweep` with
checkpoints, the code that `rankwise digits` runs; their seconds hold planning, evaluation at the rungs and at the end.
Seconds are the process's own (CPU seconds), which other programs on the machine disturb less than the clock's; so one
thread for all.

The winner is the configuration and learning rate with the best validation accuracy, the answer the smallest rank whose
mean is within 1% of it (one seed shows nothing by the package's own rule). Regret is the full sweep's winner's test accuracy minus the other's, in points; that of a random choice is its
mean over all 16. The embedded images leave 506 of the digits 5-9 for validation and 982 for testing, so that 0.5 points
are 3 and 5 of them: chance decides between the best. --data takes a folder with all of MNIST. With --notes every repeat is written to a file as it ends, and a second call goes on from there.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from digits_vs_peft import with_peft
from torch import nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.sweeps.choose.answer import reference_of
from rankwise.sweeps.choose.configurations import choose_learning_rates
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.run.run import run_sweep
from rankwise.tasks.digits.digits import make_problem, pretrain
from rankwise.tasks.digits.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.tasks.reading import parse_numbers
from rankwise.train.events import Observers
from rankwise.train.settings import Training

RANKS = (1, 4, 16, 64)
LRS = (3e-4, 1e-3, 3e-3, 1e-2)


def runs_of(seed: int, epochs: int) -> list[Run]:
    """The 16 configurations with one seed."""
    runs: list[Run] = []
    for r in RANKS:
        for lr in LRS:
            name = f"r{r}-lr{lr:g}-s{seed}"
            member = Member(name=name, seed=seed, lora=LoRAConfig(r=r, seed=seed))
            runs.append(Run(name, f"r{r}", f"r = {r}", "lora", member, Training(lr=lr, epochs=epochs), "new"))
    return runs


def swept(base: nn.Module, problem: Problem, runs: Sequence[Run], rungs: Sequence[int]) -> tuple[SweepState, float]:
    """A sweep and its seconds."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        found = run_sweep(base, runs, problem, Observers(), rungs=rungs, checkpoints=Path(folder))
    return found, time.process_time() - start


@dataclass(frozen=True)
class Choice:
    """What a sweep has chosen, and the test accuracy of every run that finished."""

    winner: str
    answer: str
    test: dict[str, float]


def choice_of(found: SweepState) -> Choice:
    chosen = choose_learning_rates([found.score(run) for run in found.runs], higher_is_better=True)
    able = [c for c in chosen if c.runs]
    reference = reference_of(able, higher_is_better=True)
    close = [c for c in able if (c.validation_mean or 0.0) >= 0.99 * (reference.validation_mean or 0.0)]
    answer = min(close, key=lambda c: int(c.name.removeprefix("r")))
    named = {c.name: c.runs[0].name for c in able}
    test = {name: float(scores.test.mean()) for name, scores in found.scores.items()}
    return Choice(named[reference.name], named[answer.name], test)


@dataclass(frozen=True)
class Repeat:
    """What one seed gave: seconds of a run of peft, of the full sweep and of the one with rungs, and what they chose."""

    peft: float
    full: float
    rungs: float
    every: Choice
    chosen: Choice

    @property
    def regret(self) -> float:
        """Of the winner with rungs, in points of test accuracy."""
        return 100 * (self.every.test[self.every.winner] - self.chosen.test[self.chosen.winner])

    @property
    def regret_of_answer(self) -> float:
        return 100 * (self.every.test[self.every.answer] - self.chosen.test[self.chosen.answer])

    @property
    def regret_at_random(self) -> float:
        return 100 * (self.every.test[self.every.winner] - statistics.mean(self.every.test.values()))

    @property
    def spread(self) -> float:
        return 100 * (max(self.every.test.values()) - min(self.every.test.values()))


def repeat_of(base: nn.Module, problem: Problem, seed: int, epochs: int, rungs: Sequence[int]) -> Repeat:
    """One run of peft, the full sweep and the sweep with rungs, in turn."""
    start = time.process_time()
    with_peft(base, problem.splits["new"], 8, seed, epochs)
    peft = time.process_time() - start
    full, full_seconds = swept(base, problem, runs_of(seed, epochs), ())
    short, short_seconds = swept(base, problem, runs_of(seed, epochs), rungs)
    return Repeat(peft, full_seconds, short_seconds, choice_of(full), choice_of(short))


def read_notes(path: Path | None, settings: str) -> dict[int, Repeat]:
    """Repeats of an earlier call with these settings, by seed."""
    found: dict[int, Repeat] = {}
    if path is not None and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            note = json.loads(line)
            if note["settings"] == settings:
                choices = {key: Choice(**note["repeat"].pop(key)) for key in ("every", "chosen")}
                found[note["seed"]] = Repeat(**note["repeat"], **choices)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="seeds")
    parser.add_argument("--data", default="embedded", help="embedded (10,000 images), or a folder of IDX files")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training images")
    parser.add_argument("--rungs", type=parse_numbers, default=(3, 8), help="epochs after which the worst leave")
    parser.add_argument("--notes", type=Path, help="where repeats are noted, to go on from")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rungs = ",".join(map(str, arguments.rungs))
    data = "" if arguments.data == "embedded" else "--data DIR "
    settings = f"{data}--epochs {arguments.epochs} --rungs {rungs}"
    repeats = read_notes(arguments.notes, settings)
    problem = make_problem(load_digits_data(arguments.data), torch.device("cpu"))
    base = pretrain(problem, DigitsOptions())
    # All once, unmeasured: imports, thread pools, the allocator.
    repeat_of(base, problem, 0, 1, ())
    for seed in range(arguments.repeats):
        if seed not in repeats:
            repeats[seed] = one = repeat_of(base, problem, seed, arguments.epochs, arguments.rungs)
            if arguments.notes is not None:
                with arguments.notes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"settings": settings, "seed": seed, "repeat": asdict(one)}) + "\n")
        one = repeats[seed]
        print(
            f"seed {seed}: full {one.full / one.peft:.2f}, rungs {one.rungs / one.peft:.2f} peft runs of {one.peft:.1f} s; "
            f"winner {one.every.winner} and {one.chosen.winner}, answer {one.every.answer} and {one.chosen.answer}; "
            f"regret {one.regret:+.2f}",
            flush=True,
        )
    text = summary([repeats[seed] for seed in range(arguments.repeats)], settings)
    print(text)
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(text)


def summary(repeats: Sequence[Repeat], settings: str) -> str:
    """The section of RESULTS.md."""
    n = len(repeats)

    def cost(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    def points(values: Sequence[float]) -> str:
        return f"{statistics.mean(values):+.2f} ({max(values):+.2f})"

    same_winner = sum(one.every.winner == one.chosen.winner for one in repeats)
    same_answer = sum(one.every.answer.split("-")[0] == one.chosen.answer.split("-")[0] for one in repeats)
    within = sum(one.regret <= 0.5 for one in repeats)
    spreads = [one.spread for one in repeats]
    return (
        f"\n## {datetime.now(UTC):%Y-%m-%d} rungs.py --repeats {n} {settings}\n\n"
        f"torch {metadata.version('torch')}, peft {metadata.version('peft')}, Python {platform.python_version()}, "
        f"{platform.machine()} CPU. 16 configurations; test accuracy spreads over {min(spreads):.1f} to "
        f"{max(spreads):.1f} points.\n\n"
        "| | cost in runs of peft, median (range) | winner as in the full sweep | within 0.5 points of it | answer of the "
        "same rank | regret of the winner, mean (worst) | of the answer, mean (worst) |\n|---|---|---|---|---|---|---|\n"
        f"| full sweep | {cost([one.full / one.peft for one in repeats])} | | | | | |\n"
        f"| with rungs | {cost([one.rungs / one.peft for one in repeats])} | {same_winner} of {n} | {within} of {n} "
        f"| {same_answer} of {n} | {points([one.regret for one in repeats])} "
        f"| {points([one.regret_of_answer for one in repeats])} |\n"
        f"| random choice | | 1 in 16 | | 1 in 4 | {points([one.regret_at_random for one in repeats])} | |\n"
    )


if __name__ == "__main__":
    main()
