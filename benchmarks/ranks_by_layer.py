"""Ranks by layer against a flat rank with as many parameters, on the digits.

    python benchmarks/ranks_by_layer.py --out runs/ranks_by_layer

An adapter of r = 32 is trained with a seed of its own. Its spectra then propose a rank for each layer, with no more
parameters in all than r = 2, 4, 8 or 16 has. Where it is another than the flat one, both are trained with the same seeds
and at the same scale, each at its own best learning rate of three.
"""

import argparse
from pathlib import Path

import torch

import rankwise
from rankwise.lora.config import LoRAConfig
from rankwise.results import Results
from rankwise.tasks.digits.digits import accuracy, loss, make_problem, pretrain
from rankwise.tasks.digits.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.settings import Training

LARGE, RANKS, SEEDS, LRS = 32, (2, 4, 8, 16), (0, 1, 2), (1e-3, 3e-3, 1e-2)


def paired(results: Results, one: str, other: str) -> list[float]:
    """Differences of the test metric by seed, each at its own learning rate."""
    ours, theirs = (
        {run.seed: run.metric for run in results.runs if run.configuration == name and run.lr == lr}
        for name in (one, other)
        for lr in [results.configuration(name).lr]
    )
    return [(ours[seed] or 0.0) - (theirs[seed] or 0.0) for seed in SEEDS]


def main() -> None:
    """Train, and print the table and the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="embedded", help="a folder of MNIST; by default the embedded images")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    problem = make_problem(load_digits_data(given.data), torch.device("cpu"))
    base = pretrain(problem, DigitsOptions(device="cpu"))
    new = problem.splits["new"]
    shared = {
        "train": new.train, "validation": new.validation, "test": new.test, "loss": loss, "metric": accuracy,
        "training": Training(epochs=given.epochs, batch_size=64), "plan": "grid", "compressed": False,
    }  # fmt: skip
    large = rankwise.sweep(
        base, {"r32": LARGE}, lrs=3e-3, seeds=[100], baseline=False, out=given.out / "large", **shared
    )
    adapter = large.directory / next(run.adapter for run in large.results.runs)
    configs: dict[str, LoRAConfig] = {}
    for r in RANKS:
        by_layer = rankwise.ranks_by_layer(adapter, r)
        print(f"r = {r}:", dict(by_layer.rank_pattern))
        if set(by_layer.rank_pattern.values()) != {r}:
            configs |= {f"r{r}": LoRAConfig(r=r), f"r{r} by layer": by_layer}
    found = rankwise.sweep(base, configs, lrs=LRS, seeds=SEEDS, baseline=False, out=given.out / "both", **shared)
    print(found.table())
    for r in (r for r in RANKS if f"r{r}" in configs):
        differences = torch.tensor(paired(found.results, f"r{r} by layer", f"r{r}"))
        error = float(differences.std() / len(differences) ** 0.5)
        print(f"r = {r}: by layer minus flat {float(differences.mean()):+.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    main()
