"""Metrics that are functions of sums over rows, against slow delete-one references and in a sweep."""

import numpy as np
import pytest
import torch
from torch import nn

import rankwise
from rankwise.errors import PackError
from rankwise.pack.counts import CountMetric
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter


def hits(outputs, batch):
    said, true = outputs.argmax(-1), batch[1]
    return torch.stack([said * true, said, true], -1)


F1 = CountMetric(hits, lambda sums: 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2]).clamp_min(1))


def slow_f1(said, true) -> float:
    return float(2 * (said * true).sum() / max(1, int(said.sum() + true.sum())))


def data(n=40):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(3, n, 2, generator=draws), torch.randint(0, 2, (n,), generator=draws)


def test_values_of_rows_are_those_of_leaving_one_out() -> None:
    outputs, true = data()
    values = F1.rows(torch.stack([F1(one, (None, true)) for one in outputs]))
    for k, one in enumerate(outputs):
        said = one.argmax(-1)
        whole, n = slow_f1(said, true), len(true)
        left = np.array([slow_f1(np.delete(said.numpy(), i), np.delete(true.numpy(), i)) for i in range(n)])
        pseudo = n * whole - (n - 1) * left
        np.testing.assert_allclose(values[k], pseudo - pseudo.mean() + whole, rtol=1e-5)
        assert float(values[k].mean()) == pytest.approx(whole, abs=1e-6)


def test_a_ratio_of_sums_has_the_spread_of_its_linear_form() -> None:
    draws = np.random.default_rng(0)
    counts = torch.tensor(np.stack([draws.gamma(2, 3, 2000), draws.integers(1, 40, 2000)], -1))
    ratio = CountMetric(lambda outputs, batch: outputs, lambda sums: sums[..., 0] / sums[..., 1])
    linear = rankwise.pack.counts.ratio_rows(counts[:, 0], counts[:, 1])
    assert float(ratio.rows(counts).std()) == pytest.approx(float(linear.std()), rel=0.01)


def test_parts_of_a_data_set_are_joined() -> None:
    outputs, true = data()
    function, groups = PerAdapter(F1, "metric"), Groups([0] * 3, 1, outputs.device)
    parts = [
        function.rows(outputs[:, part], (true[part].view(1, -1), true[part].view(1, -1)), groups)
        for part in (slice(0, 9), slice(9, 10), slice(10, None))
    ]
    torch.testing.assert_close(function.joined(parts), F1.rows(torch.stack([F1(one, (None, true)) for one in outputs])))


def test_one_row() -> None:
    assert F1.rows(torch.tensor([[1.0, 1.0, 1.0]])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (lambda outputs, batch: outputs.mean(), "have shape \\(\\) for a batch of 8 rows"),
        (lambda outputs, batch: (outputs, outputs), "have tuple for a batch of 8 rows"),
        (lambda outputs, batch: outputs - outputs.mean(0), "rows have other values when they are alone"),
    ],
)
def test_counts_that_are_not_those_of_rows_are_refused(counts, message) -> None:
    outputs, true = data(8)
    function = PerAdapter(CountMetric(counts, lambda sums: sums[..., 0]), "metric")
    with pytest.raises(PackError, match=message):
        function.rows(outputs, (true.view(1, -1), true.view(1, -1)), Groups([0] * 3, 1, outputs.device))


def test_no_loss() -> None:
    with pytest.raises(PackError, match="can't be a loss"):
        PerAdapter(F1, "loss")


def test_a_sweep_decides_by_f1() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(700, 4, generator=draws)
    y = (x[:, 0] + 0.3 * torch.randn(700, generator=draws) > 0.8).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    found = rankwise.sweep(
        model,
        [1, 2],
        train=(x[:300], y[:300]),
        validation=(x[300:500], y[300:500]),
        test=(x[500:], y[500:]),
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1], reduction="none"),
        metric=F1,
        higher_is_better=True,
        seeds=3,
        plan="grid",
        lrs=[1e-2],
        training=rankwise.Training(epochs=4),
        tolerance="5%",
        progress="quiet",
    )
    test = next(c for c in found.results["configurations"] if c["name"] == "r2")
    assert 0.3 < test["mean"] <= 1
    low, high = test["interval"]
    assert low < test["mean"] < high
    run = next(run for run in found.results["runs"] if run["r"] == 2)
    found.put_on(model, run["name"])
    said = model(x[500:]).argmax(-1)
    assert float(found.swept.scores[run["name"]].test.mean()) == pytest.approx(slow_f1(said, y[500:]), abs=1e-5)
