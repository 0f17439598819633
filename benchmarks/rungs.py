"""Which rank, with rungs and without: what the answer costs in runs of peft, and how often it is the same.

    python benchmarks/rungs.py [--repeats 10] [--epochs 30] [--rungs 3,8] [--threads 2] [--record]

16 configurations on the digits, r 1, 4, 16, 64 with four learning rates each, one seed a repeat, without a baseline. In
every repeat three things take turns: one run of peft (r = 8, evaluated after every epoch), the full sweep, and the sweep
with rungs; all for the same number of epochs, without early stopping. The sweeps are `rankwise.sweeps.run.run_sweep` with
checkpoints, the code that `rankwise digits` runs; their seconds hold planning, evaluation at the rungs and at the end.

The winner is the configuration and learning rate with the best validation accuracy, the answer the smallest rank within
1% of it. Regret is the full sweep's winner's test accuracy minus the other's, in points; that of a random choice is its
mean over all 16.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from digits_vs_peft import with_peft
from torch import nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.sweeps.answer import decide, reference_of, tolerance_of
from rankwise.sweeps.configurations import choose_learning_rates
from rankwise.sweeps.problem import Problem, Run, Swept
from rankwise.sweeps.run import run_sweep
from rankwise.tasks.digits import make_problem, pretrain
from rankwise.tasks.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions, parse_numbers
from rankwise.train.live import progress
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


def swept(base: nn.Module, problem: Problem, runs: Sequence[Run], rungs: Sequence[int]) -> tuple[Swept, float]:
    """A sweep and its seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = run_sweep(base, runs, problem, progress("quiet"), rungs=rungs, checkpoints=Path(folder))
    return found, time.perf_counter() - start


@dataclass(frozen=True)
class Choice:
    """What a sweep has chosen, and the test accuracy of every run that finished."""

    winner: str
    answer: str
    test: dict[str, float]


def choice_of(found: Swept) -> Choice:
    chosen = choose_learning_rates([found.score(run) for run in found.runs], higher_is_better=True)
    able = [c for c in chosen if c.runs]
    reference = reference_of(able, higher_is_better=True)
    tolerance = tolerance_of(reference.validation_mean or 0.0, None, "accuracy")
    answer = decide(able, reference, tolerance, higher_is_better=True)
    named = {c.name: c.runs[0].name for c in able}
    test = {name: float(scores.test.mean()) for name, scores in found.scores.items()}
    return Choice(named[reference.name], named[answer.name], test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="seeds")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the 3,406 training images")
    parser.add_argument("--rungs", type=parse_numbers, default=(3, 8), help="epochs after which the worst leave")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    problem = make_problem(load_digits_data("embedded"), torch.device("cpu"))
    base, data = pretrain(problem, DigitsOptions()), problem.splits["new"]
    # All once, unmeasured: imports, thread pools, the allocator.
    with_peft(base, data, 8, 0, 1)
    swept(base, problem, runs_of(0, 1), ())
    costs: list[tuple[float, float]] = []
    same_winner = same_answer = 0
    regrets: list[float] = []
    of_answer: list[float] = []
    random_regrets: list[float] = []
    spreads: list[float] = []
    for seed in range(arguments.repeats):
        start = time.perf_counter()
        with_peft(base, data, 8, seed, arguments.epochs)
        peft = time.perf_counter() - start
        full, full_seconds = swept(base, problem, runs_of(seed, arguments.epochs), ())
        short, short_seconds = swept(base, problem, runs_of(seed, arguments.epochs), arguments.rungs)
        every, chosen = choice_of(full), choice_of(short)
        costs.append((full_seconds / peft, short_seconds / peft))
        same_winner += every.winner == chosen.winner
        same_answer += every.answer.split("-")[0] == chosen.answer.split("-")[0]
        best = every.test[every.winner]
        regrets.append(100 * (best - chosen.test[chosen.winner]))
        of_answer.append(100 * (every.test[every.answer] - chosen.test[chosen.answer]))
        random_regrets.append(100 * (best - statistics.mean(every.test.values())))
        spreads.append(100 * (max(every.test.values()) - min(every.test.values())))
        print(
            f"seed {seed}: full {costs[-1][0]:.2f}, rungs {costs[-1][1]:.2f} peft runs of {peft:.1f} s; winner "
            f"{every.winner} and {chosen.winner}, answer {every.answer} and {chosen.answer}; regret {regrets[-1]:+.2f}",
            flush=True,
        )
    n = arguments.repeats

    def cost(i: int) -> str:
        values = sorted(one[i] for one in costs)
        return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"

    within = sum(regret <= 0.5 for regret in regrets)
    rungs = ",".join(map(str, arguments.rungs))
    text = (
        f"\n## {datetime.now(UTC):%Y-%m-%d} rungs.py --repeats {n} --epochs {arguments.epochs} --rungs {rungs} "
        f"--threads {arguments.threads}\n\n"
        f"torch {metadata.version('torch')}, peft {metadata.version('peft')}, Python {platform.python_version()}, "
        f"{platform.machine()} CPU. 16 configurations; test accuracy spreads over {min(spreads):.1f} to "
        f"{max(spreads):.1f} points.\n\n"
        "| | cost in runs of peft, median (range) | winner as in the full sweep | within 0.5 points of it | answer of the "
        "same rank | regret of the winner, mean (worst) | of the answer, mean (worst) |\n|---|---|---|---|---|---|---|\n"
        f"| full sweep | {cost(0)} | | | | | |\n"
        f"| with rungs | {cost(1)} | {same_winner} of {n} | {within} of {n} | {same_answer} of {n} | "
        f"{statistics.mean(regrets):+.2f} ({max(regrets):+.2f}) | {statistics.mean(of_answer):+.2f} ({max(of_answer):+.2f}) |\n"
        f"| random choice | | 1 in 16 | | 1 in 4 | {statistics.mean(random_regrets):+.2f} ({max(random_regrets):+.2f}) | |\n"
    )
    print(text)
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
