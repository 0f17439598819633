"""How often the 95% intervals hold the truth: accuracy, losses, losses a token, macro F1 and Matthews' correlation.

    python benchmarks/coverage.py [--repeats 1000]

Each cell is a population of rows of some difficulty and of seeds with some luck, whose mean is known: by formula, or from
many seeds on many rows. Samples of S seeds on n rows, the same rows for all seeds as test data are, go through the
package's own `interval`. Cells: every metric, S of 3 and 5, n of 500 and 2,000, seeds that differ little and much. Of
F1 the rarest class has 3% of the rows, so at least about 15.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rankwise.pack.counts import CountMetric, ratio_rows
from rankwise.sweeps.choose.statistics import interval
from rankwise.tasks.text.score.metrics import f1_of_counts, label_counts, mcc_of_counts

PRIORS = np.array([0.4, 0.3, 0.17, 0.1, 0.03])
CUTS = np.array([1.6, 1.3, 1.0, 0.9, 0.4])

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""(draws, seeds, rows) -> what each row adds to the metric, by seed."""


@dataclass(frozen=True)
class Population:
    """Rows of some difficulty, and seeds of some luck.

    Args:
        luck: Standard deviation of a seed's skill, where a row's difficulty has 1.
        noise: Of what is neither the row's nor the seed's.
    """

    luck: float
    noise: float = 0.5

    def skill(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        """Difficulty of each row for each seed."""
        own = draws.standard_normal(rows) + self.luck * draws.standard_normal((seeds, 1))
        return own + self.noise * draws.standard_normal((seeds, rows))

    def accuracy(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        return (self.skill(draws, seeds, rows) < 1.2).astype(float)

    def near_one(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        return (self.skill(draws, seeds, rows) < 2.2).astype(float)

    def loss(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        return np.exp(0.5 * self.skill(draws, seeds, rows))

    def token_loss(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        """Long rows are the easier ones."""
        difficulty = draws.standard_normal(rows)
        lengths = np.ceil(np.exp(3 - 0.4 * difficulty + 0.7 * draws.standard_normal(rows)))
        own = difficulty + self.luck * draws.standard_normal((seeds, 1))
        sums = lengths * np.exp(0.5 * (own + self.noise * draws.standard_normal((seeds, rows))))
        counts = torch.from_numpy(lengths).expand(seeds, -1)
        return ratio_rows(torch.from_numpy(sums), counts).numpy()

    def labels(self, draws: np.random.Generator, seeds: int, rows: int) -> torch.Tensor:
        true = draws.choice(len(PRIORS), rows, p=PRIORS)
        right = self.skill(draws, seeds, rows) < CUTS[true]
        other = (true + draws.integers(1, len(PRIORS), (seeds, rows))) % len(PRIORS)
        said = np.where(right, true, other)
        return label_counts(torch.from_numpy(said), torch.from_numpy(true), len(PRIORS))

    def f1(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        return CountMetric(lambda o, b: o, f1_of_counts).rows(self.labels(draws, seeds, rows)).numpy()

    def mcc(self, draws: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        return CountMetric(lambda o, b: o, mcc_of_counts).rows(self.labels(draws, seeds, rows)).numpy()


METRICS = {
    "accuracy": Population.accuracy,
    "accuracy near 1": Population.near_one,
    "loss": Population.loss,
    "loss a token": Population.token_loss,
    "macro F1": Population.f1,
    "Matthews' correlation": Population.mcc,
}


def truth(draw: Draw) -> float:
    """The metric's mean over seeds and over samples so large that a ratio has no bias."""
    draws = np.random.default_rng(12345)
    return float(np.mean([draw(draws, 20, 20_000).mean() for _ in range(60)]))


def coverage(draw: Draw, seeds: int, rows: int, repeats: int, right: float) -> float:
    held = 0
    for k in range(repeats):
        low, high = interval(draw(np.random.default_rng([k, seeds, rows]), seeds, rows).astype(np.float64))
        held += low <= right <= high
    return held / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    args = parser.parse_args()
    cells: list[float] = []
    print("| metric | seeds' luck | 3 x 500 | 3 x 2,000 | 5 x 500 | 5 x 2,000 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, method in METRICS.items():
        for luck in (0.02, 0.1):
            population = Population(luck)

            def draw(draws, seeds, rows, method=method, population=population):
                return method(population, draws, seeds, rows)

            right = truth(draw)
            found = [coverage(draw, s, n, args.repeats, right) for s in (3, 5) for n in (500, 2000)]
            cells += found
            print(f"| {name} | {luck} | {' | '.join(f'{c:.3f}' for c in found)} |", flush=True)
    print(f"\nmedian {np.median(cells):.3f}, least {min(cells):.3f}, of {len(cells)} cells of {args.repeats} repeats")


if __name__ == "__main__":
    main()
