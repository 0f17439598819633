"""Evaluations pass the rows in an order and size of their own, and give them back as they are in the data."""

import torch
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.losses import PerAdapter
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.train.data.feed import Feed
from rankwise.train.evaluation import FEW_ROWS, ROWS_MEASURED, evaluate_rows, in_parts, means


def squares(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (outputs - batch[1]).square().sum(-1)


def sums(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    counts = batch[1][:, 0].abs().round() + 1
    return squares(outputs, batch) * counts, counts


def setting() -> tuple[Pack, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r)) for r in (1, 3)]
    pack = Pack(model, members, squares)
    pack.store.randomise()
    return pack, (torch.randn(23, 4).double(), 3 * torch.randn(23, 3).double())


def test_order_and_size_of_the_passes_change_nothing() -> None:
    pack, data = setting()
    functions = [PerAdapter(squares, "loss"), PerAdapter(sums, "metric")]
    backwards = Feed(evaluation_order=lambda data: torch.arange(len(data[0])).flip(0), rows_at_once=10)
    with pack.attached(data, training=False):
        whole, cut = (evaluate_rows(pack, data, functions, feed) for feed in (Feed(), backwards))
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b)


def test_sums_and_counts_are_averaged_over_the_counts() -> None:
    pack, data = setting()
    with pack.attached(data, training=False):
        (values,) = evaluate_rows(pack, data, [PerAdapter(squares, "loss")], Feed())
        (mean,) = means(pack, data, [PerAdapter(sums, "metric")], Feed(rows_at_once=8))
    weights = data[1][:, 0].abs().round() + 1
    torch.testing.assert_close(mean, (values * weights).sum(1) / weights.sum())
    assert not torch.allclose(mean, values.mean(1))


def test_few_rows_are_not_measured_and_many_are() -> None:
    passed: list[int] = []

    def run(rows: Tensor) -> int:
        passed.append(len(rows))
        return len(rows)

    few, many = torch.arange(FEW_ROWS), torch.arange(FEW_ROWS + 1)
    assert sum(in_parts(few, 1000, run)) == sum(passed) == FEW_ROWS
    assert max(passed) == ROWS_MEASURED
    passed.clear()
    assert in_parts(few, 1000, run, least=40, measured={"row": 1e12}) == passed == [40, 24], "whoever has measured"
    assert in_parts(few, 5, run, least=40)[0] == 5
    passed.clear()
    assert sum(in_parts(many, 1000, run)) == len(many)
    assert sum(passed) == len(many) + ROWS_MEASURED
