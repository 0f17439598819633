"""What an answer costs in time: the whole digits sweep against one peft run of the same data.

    python benchmarks/answer_time.py [--tolerance 3%] [--repeats 3] [--threads 2]
    python benchmarks/answer_time.py --data ../shared/data/mnist --samples 7 [--no-curve]

One side trains one adapter with peft (r = 8) and full fine-tuning beside it, as one would by hand: AdamW, batches of 64,
60 epochs at most, stopped after 10 without a better validation loss, validation after every epoch, test at the end.
The other is `rankwise digits`: search for learning rates, adaptive plan, all ranks, baseline, evaluation, adapters and
results. Pretraining the base is left out of both. They take turns; the median of the ratios is printed. After how many
epochs one adapter stops is luck, so the side by hand trains with three seeds, and the mean of its times counts.

How many runs an answer needs, and how many epochs a run, depends on the data's luck, and nothing changes it from one
repeat to the next. `--samples` takes disjoint samples of MNIST (those of `answer.py`), a sample a repeat, and adds the
ratio of the sums.
"""

import argparse
import copy
import io
import json
import statistics
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from answer import raw_sample
from torch import nn

from rankwise.cli import main as rankwise
from rankwise.sweeps.problem import Splits
from rankwise.tasks.digits import run
from rankwise.tasks.digits.digits import MODULES, make_problem, pretrain
from rankwise.tasks.digits.mnist import RawDigits, load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.data.tensors import shuffled

HANDS = 3
"""Seeds of the side by hand."""


def trained(model: nn.Module, data: Splits, lr: float, seed: int) -> tuple[int, float]:
    """Train as one would by hand, and return the epochs and the test accuracy of the best one."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, fused=True)
    (x, y), best, waited, kept = data.train, float("inf"), 0, {}
    epoch = 0
    for epoch in range(60):
        model.train()
        for rows in shuffled(len(y), seed, epoch).split(64):
            optimiser.zero_grad()
            F.nll_loss(model(x[rows]), y[rows]).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            loss = float(F.nll_loss(model(data.validation[0]), data.validation[1]))
        waited = 0 if loss < best else waited + 1
        if loss < best:
            best, kept = loss, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        if waited == 10:
            break
    model.load_state_dict(kept, strict=False)
    with torch.no_grad():
        return epoch + 1, float((model(data.test[0]).argmax(-1) == data.test[1]).float().mean())


def by_hand(base: nn.Module, data: Splits, seed: int) -> float:
    """Seconds of one adapter and of full fine-tuning."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    start = time.perf_counter()
    config = LoraConfig(r=8, lora_alpha=32, target_modules=list(MODULES))
    lora = trained(get_peft_model(copy.deepcopy(base), config), data, 3e-3, seed)
    full = trained(copy.deepcopy(base), data, 1e-3, seed)
    seconds = time.perf_counter() - start
    print(f"by hand: {seconds:.1f} s; r = 8 {lora[1]:.3f} after {lora[0]} epochs, full {full[1]:.3f} after {full[0]}")
    return seconds


def swept(raw: RawDigits, options: list[str]) -> float:
    """Seconds of the sweep, without the pretraining of its base."""
    run.load_digits_data = lambda _: raw
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        rankwise(["digits", *options, "--out", f"{folder}/run", "--quiet", "--device", "cpu"])
        results = json.loads((Path(folder) / "run" / "results.json").read_text())
    answer = results["answer"]
    print(f"rankwise: {results['seconds']:.1f} s, {len(results['runs'])} runs; {answer['verdict']}: {answer['name']}")
    return results["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", default="3%")
    parser.add_argument("--confidence", default="0.95")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--no-curve", action="store_true", help="without the sizes that the answer does not need")
    parser.add_argument("--samples", type=int, default=0, help="samples of --data, in place of repeats on all of it")
    args = parser.parse_args()
    options = ["--tolerance", args.tolerance, "--confidence", args.confidence]
    options += ["--no-curve"] if args.no_curve else []
    torch.set_num_threads(args.threads)
    times: list[tuple[float, float]] = []
    for i in range(args.samples or args.repeats):
        raw = raw_sample(args.data, i, 1000) if args.samples else load_digits_data(args.data)
        problem = make_problem(raw, torch.device("cpu"))
        base, data = pretrain(problem, DigitsOptions()), problem.splits["new"]
        hand = statistics.mean(by_hand(base, data, seed) for seed in range(HANDS))
        times.append((hand, swept(raw, options)))
    ratios = [sweep / hand for hand, sweep in times]
    print(f"the sweep takes {statistics.median(ratios):.1f} times as long ({min(ratios):.1f} to {max(ratios):.1f})")
    hand, sweep = map(sum, zip(*times, strict=True))
    print(f"together: {sweep:.1f} s to {hand:.1f} s, {sweep / hand:.1f} times as long")


if __name__ == "__main__":
    main()
