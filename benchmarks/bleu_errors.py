"""The standard error of a difference of corpus BLEU: pseudo-values of texts against the paired bootstrap.

Two systems are made by changing words of a reference of E2E NLG at random; each input keeps all of its references. For
each number of inputs, samples are drawn without an input in common, so the spread of their differences is the true
error. The paired bootstrap is Koehn's (2004).

python benchmarks/bleu_errors.py testset_w_refs.csv
"""

import csv
import random
import sys
from pathlib import Path

import torch

from rankwise.pack.counts import CountMetric
from rankwise.tasks.text.score.text_counts import bleu_counts, bleu_of_counts

SHARES = ((0.30, 0.33), (0.10, 0.20))
"""Of words that the two systems change."""

SIZES = (25, 50, 100, 200)
DRAWS = 2000


def worse(reference: str, share: float, words: list[str], draw: random.Random) -> str:
    """A reference with some of its words replaced, or left out."""
    said = [word if draw.random() > share else draw.choice([draw.choice(words), ""]) for word in reference.split()]
    return " ".join(word for word in said if word)


def main(path: Path) -> None:
    """Print a table."""
    by_input: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_input.setdefault(row["mr"], []).append(row["ref"])
    references = list(by_input.values())
    draw = random.Random(0)
    draw.shuffle(references)
    words = [word for own in references for word in own[0].split()]
    metric = CountMetric(lambda outputs, batch: outputs, bleu_of_counts)
    print("| words changed | BLEU | inputs | pseudo-values | paired bootstrap | spread of the samples | samples |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    generator = torch.Generator().manual_seed(0)
    for shares in SHARES:
        # The other system's text is of another reference of the input where there is one.
        texts = [[worse(own[k % len(own)], share, words, draw) for own in references] for k, share in enumerate(shares)]
        counts = [bleu_counts(one, references) for one in texts]
        figures = " / ".join(f"{float(bleu_of_counts(c.sum(0))):.1f}" for c in counts)
        for n in SIZES:
            samples = [[c[start : start + n] for c in counts] for start in range(0, len(references) - n + 1, n)]
            errors, spreads, differences = [], [], []
            for one, other in samples:
                u = metric.rows(one).double() - metric.rows(other).double()
                errors.append(float(u.std()) / n**0.5)
                picks = torch.randint(n, (DRAWS, n), generator=generator)
                drawn = bleu_of_counts(one[picks].sum(1)) - bleu_of_counts(other[picks].sum(1))
                spreads.append(float(drawn.std()))
                differences.append(float(u.mean()))
            true = f"{float(torch.tensor(differences).std()):.3f}" if len(samples) > 10 else ""
            mean = [sum(of) / len(of) for of in (errors, spreads)]
            print(
                f"| {shares[0]:.0%} / {shares[1]:.0%} | {figures} | {n} | {mean[0]:.3f} | {mean[1]:.3f} | "
                f"{true} | {len(samples)} |"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
