"""The digits sweep against peft trained one rank after another: same data, loop, optimiser, evaluation, threads.

    python benchmarks/digits_vs_peft.py [--epochs 10] [--repeats 5] [--threads 2] [--record]

Both sides train LoRA on the three layers of the digits network from the same base and the same initial A, with fused
AdamW, batches of 64 that are taken from tensors in memory, in the same order, and both take loss and accuracy on the
validation data after every epoch. peft trains one adapter after another. Rankwise trains them in one pack, with
`rankwise.train.loop.PackTraining`, the code that every sweep runs; and, with several threads, as `rankwise digits` does
it: as a sweep in as many processes of one thread, with its plan, its files and its measurements at the end. They
take turns; the ratio is that of each turn.
"""

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.lora.inits import initial_adapter
from rankwise.pack.member import Member
from rankwise.sweeps.problem import Problem, Run, Splits
from rankwise.sweeps.run.run import run_sweep
from rankwise.sweeps.run.units.local import LocalProcesses
from rankwise.tasks.digits.digits import MODULES, accuracy, loss, make_problem, pretrain
from rankwise.tasks.digits.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.data.tensors import shuffled
from rankwise.train.events import Observers
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training

RANKS = (1, 2, 4, 8, 16, 32, 64)
ALPHA, LR, BATCH = 32.0, 1e-3, 64


def with_peft(base: nn.Module, data: Splits, r: int, seed: int, epochs: int) -> nn.Module:
    """Train one adapter with peft, and return the adapted model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=r, lora_alpha=ALPHA, target_modules=list(MODULES))
    model = get_peft_model(copy.deepcopy(base), config)
    for name, module in model.named_modules():
        if name.endswith("lora_A.default"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
            d_in = module.weight.shape[1]
            A, _ = initial_adapter("kaiming", seed=seed, module=layer, r=r, d_in=d_in, d_out=1)
            module.weight.data.copy_(A)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    (x, y), n = data.train, len(data.train[1])
    for epoch in range(epochs):
        model.train()
        total = torch.zeros(())
        order = shuffled(n, seed, epoch).to(x.device)
        for start in range(0, n, BATCH):
            rows = order[start : start + BATCH]
            optimiser.zero_grad()
            value = F.nll_loss(model(x.index_select(0, rows)), y.index_select(0, rows))
            value.backward()
            optimiser.step()
            total += value.detach() * len(rows)
        peft_score(model, data.validation)
    return model


@torch.no_grad()
def peft_score(model: nn.Module, data: Sequence[Tensor]) -> tuple[float, float]:
    """Loss and accuracy."""
    model.eval()
    outputs = model(data[0])
    return float(F.nll_loss(outputs, data[1])), float((outputs.argmax(-1) == data[1]).float().mean())


def runs_of(seeds: Sequence[int], epochs: int) -> list[Run]:
    """All ranks and seeds."""
    training = Training(lr=LR, batch_size=BATCH, epochs=epochs, weights="last")
    return [
        Run(
            f"r{r}-s{s}",
            f"r{r}",
            f"r = {r}",
            "lora",
            Member(name=f"r{r}-s{s}", seed=s, lora=LoRAConfig(r=r, alpha=ALPHA, seed=s)),
            training,
            "new",
        )
        for r in RANKS
        for s in seeds
    ]


def in_processes(base: nn.Module, problem: Problem, seeds: Sequence[int], epochs: int, n: int) -> dict[str, float]:
    """Train all ranks and seeds as a sweep in n processes, and return the last validation accuracies."""
    workers = LocalProcesses(n)
    with tempfile.TemporaryDirectory() as folder:
        workers.begin(Path(folder))
        swept = run_sweep(
            base, runs_of(seeds, epochs), problem, Observers([]), checkpoints=Path(folder), workers=workers
        )
        workers.close()
    return {point.run: point.metric for point in swept.curve}


def with_rankwise(base: nn.Module, data: Splits, seeds: Sequence[int], epochs: int) -> dict[str, float]:
    """Train all ranks and seeds in one pack, and return the last validation accuracies."""
    last: dict[str, float] = {}
    runs = [(run.member, run.training) for run in runs_of(seeds, epochs)]
    pack = PackTraining(base, runs, data.train, data.validation, loss, accuracy)
    while not pack.done:
        epoch = pack.advance()
        if epoch is not None:
            last |= {point.run: point.metric for point in epoch.points}
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the 3,406 training images")
    parser.add_argument("--repeats", type=int, default=5, help="turns of peft and Rankwise")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    problem = make_problem(load_digits_data("embedded"), torch.device("cpu"))
    base, data, n = pretrain(problem, DigitsOptions()), problem.splits["new"], arguments.threads
    # Both sides once, unmeasured: imports, thread pools, the allocator.
    with_peft(base, data, 8, 0, 1)
    with_rankwise(base, data, (0,), 1)
    lines: list[str] = []
    for seeds in ((0,), (0, 1, 2, 3, 4)):
        turns: list[tuple[float, float, float]] = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            theirs = {
                f"r{r}-s{s}": peft_score(with_peft(base, data, r, s, arguments.epochs), data.validation)[1]
                for r in RANKS
                for s in seeds
            }
            middle = time.perf_counter()
            ours = with_rankwise(base, data, seeds, arguments.epochs)
            end = time.perf_counter()
            if n > 1:
                ours = in_processes(base, problem, seeds, arguments.epochs, n)
            turns.append((middle - start, end - middle, time.perf_counter() - end if n > 1 else end - middle))
        packed, ratios = (sorted(turn[0] / turn[i] for turn in turns) for i in (1, 2))
        steps = arguments.epochs * -(-len(data.train[1]) // BATCH)
        peft_ms, pack_ms, ours_ms = (statistics.median(turn[i] for turn in turns) / steps * 1e3 for i in range(3))
        means = [statistics.mean(side.values()) for side in (theirs, ours)]
        lines.append(
            f"| 7 ranks x {len(seeds)} seed{'s' if len(seeds) > 1 else ''} | {statistics.median(ratios):.2f} "
            f"| {ratios[0]:.2f} to {ratios[-1]:.2f} | {statistics.median(packed):.2f} "
            f"| {peft_ms:.2f} | {pack_ms:.2f} | {ours_ms:.2f} | {means[0]:.4f} | {means[1]:.4f} |"
        )
        print(lines[-1], flush=True)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "peft"))
    head = (
        f"\n## {datetime.now(UTC):%Y-%m-%d} digits_vs_peft.py --epochs {arguments.epochs} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}\n\n"
        f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU; "
        f"{len(data.train[1]):,} training and {len(data.validation[1]):,} validation images.\n\n"
        f"| sweep | peft / Rankwise in {n} process{'es' * (n > 1)} (median) | range | peft / one pack | peft, ms a step of "
        "all | one pack | in processes | accuracy peft | accuracy Rankwise |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    text = head + "\n".join(lines) + "\n"
    print(text)
    if arguments.record:
        path = Path(__file__).with_name("RESULTS.md")
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
