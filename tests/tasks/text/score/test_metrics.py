"""Metrics against slow references that count one row after another."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter
from rankwise.tasks.text.score.metrics import (
    CLASSIFY_METRICS,
    classify_figures,
    confusion,
    macro_f1,
    matthews,
    pearson,
)

N = 4
rows = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, N - 1)), min_size=1, max_size=30)


def slow_f1(pairs) -> float:
    """Of (predicted, right) pairs; as scikit-learn's `f1_score(average="macro")`."""
    scores = []
    for label in {label for pair in pairs for label in pair}:
        hits = sum(p == y == label for p, y in pairs)
        scores.append(2 * hits / sum((p == label) + (y == label) for p, y in pairs))
    return sum(scores) / len(scores)


def slow_mcc(pairs) -> float:
    """Correlation of the one-hot vectors of predictions and labels: the definition."""
    covariance = [0.0, 0.0, 0.0]
    for i, (a, b) in enumerate(((0, 1), (0, 0), (1, 1))):
        for k in range(N):
            mean_a, mean_b = (sum(pair[side] == k for pair in pairs) / len(pairs) for side in (a, b))
            covariance[i] += sum(((q[a] == k) - mean_a) * ((q[b] == k) - mean_b) for q in pairs)
    product = covariance[1] * covariance[2]
    return covariance[0] / math.sqrt(product) if product > 1e-9 else 0.0


@given(rows)
def test_f1_and_mcc(pairs):
    said, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert macro_f1(said, right, N) == pytest.approx(slow_f1(pairs), abs=1e-6)
    assert matthews(said, right, N) == pytest.approx(slow_mcc(pairs), abs=1e-5)
    assert confusion(said, right, N).sum() == len(pairs)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=30))
def test_several_labels_a_row(flags):
    said, right = (torch.tensor(side[: len(flags) // 3 * 3]).float().view(-1, 3) for side in zip(*flags, strict=True))
    columns = [(a, b) for a, b in zip(said.T, right.T, strict=True) if a.any() or b.any()]
    scores = [2 * float((a * b).sum()) / float(a.sum() + b.sum()) for a, b in columns]
    assert macro_f1(said, right, 3) == pytest.approx(sum(scores) / len(scores) if scores else 0.0, abs=1e-6)
    pairs = list(zip(said.flatten().long().tolist(), right.flatten().long().tolist(), strict=True))
    assert matthews(said, right, 3) == pytest.approx(slow_mcc(pairs), abs=1e-5)


def test_many_rows_do_not_round_counts():
    right = torch.arange(200_000) % 2
    said = right.clone()
    said[:2] = 1 - said[:2]
    assert matthews(said, right, 2) == pytest.approx(1 - 2e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_figures_of_all_adapters_at_once_are_those_of_each(kind):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 20, 1 if kind == "number" else N, generator=generator)
    labels = {
        "one": torch.randint(0, N, (20,), generator=generator),
        "several": torch.randint(0, 2, (20, N), generator=generator).float(),
        "number": torch.randn(20, 1, generator=generator),
    }[kind]
    together = classify_figures(outputs, labels, kind)
    for k in range(3):
        for name, value in classify_figures(outputs[k], labels, kind).items():
            torch.testing.assert_close(together[name][k], value)
    alone = {
        "one": lambda out: F.cross_entropy(out, labels),
        "several": lambda out: F.binary_cross_entropy_with_logits(out, labels),
        "number": lambda out: F.mse_loss(out, labels),
    }[kind]
    together["loss"] = torch.stack([alone(out) for out in outputs])
    figure = {"error": "mean_absolute_error"}
    for name, metric in CLASSIFY_METRICS[kind].items():
        function = PerAdapter(metric.function, "metric")
        parts = [
            function.rows(outputs[:, part], {"labels": labels[part].unsqueeze(0)}, Groups([0] * 3, 1, outputs.device))
            for part in (slice(0, 13), slice(13, None))
        ]
        torch.testing.assert_close(function.joined(parts).mean(1), together[figure.get(name, name)])


def test_correlation():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert pearson(x, 2 * x + 1) == pytest.approx(1, abs=1e-6)
    assert pearson(x, -x) == pytest.approx(-1, abs=1e-6)
    assert pearson(x, torch.ones(50)) == 0
    y = x.square()
    assert pearson(x, y) == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]), abs=1e-5)
