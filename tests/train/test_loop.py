"""The loop: nobody in a pack notices who else is in it, or when they leave."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import ConfigError, DataError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import Data
from rankwise.train.loop import PackTraining
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.train.settings import Training
from trained_pack import train_pack


def make_model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3), nn.LogSoftmax(dim=-1)
        ).double()


def make_data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)


TRAIN, VALIDATION = make_data(22, 0), make_data(10, 1)


def loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return F.nll_loss(outputs, batch[1], reduction="none")


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return (outputs.argmax(-1) == batch[1]).double()


def run(name: str, r: int | None = 2, seed: int = 0, **settings: Any) -> tuple[Member, Training]:
    """r None trains the layers in full."""
    whole = () if r else ("0", "3")
    lora = LoRAConfig(r=r, seed=seed) if r else None
    training = Training(**{"lr": 1e-2, "batch_size": 8, "epochs": 4, **settings})
    return Member(name=name, seed=seed, lora=lora, modules_to_save=whole), training


def trained(*runs: tuple[Member, Training], points: list[EpochPoint] | None = None, **given: Any) -> dict[str, Outcome]:
    model = given.pop("model", None) or make_model()
    noted = (lambda found: None) if points is None else points.extend
    data = {"train": TRAIN, "validation": VALIDATION, **given}
    outcomes = train_pack(model, runs, data["train"], data["validation"], loss, accuracy, on_epoch=noted)
    return {outcome.name: outcome for outcome in outcomes}


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.state.keys() == other.state.keys()
    for name, value in one.state.items():
        torch.testing.assert_close(value, other.state[name], rtol=1e-9, atol=1e-12)
    assert (one.status, one.steps, one.best_step) == (other.status, other.steps, other.best_step)


MIXED = [
    # A rate so high that the validation loss never falls again: it stops after its patience.
    run("hasty", r=3, lr=3.0, patience=1, epochs=30),
    run("plain"),
    run("other-seed", seed=5, weights="last"),
    run("warm", r=4, schedule="cosine", warmup=5, epochs=6, weight_decay=0.1),
    run("clipped", clip=0.05, epochs=6, schedule="plateau"),
]


def test_every_run_ends_as_it_would_alone() -> None:
    together = trained(*MIXED)
    assert next(iter(together)) == "hasty", "it ends first, and is handed out at once"
    assert together["hasty"].epochs < 4
    assert together["hasty"].reason == "no lower validation loss for 1 epochs"
    assert {name: outcome.epochs for name, outcome in together.items() if name != "hasty"} == {
        "plain": 4,
        "other-seed": 4,
        "warm": 6,
        "clipped": 6,
    }
    for each in MIXED:
        alone = trained(each)
        assert_same(together[each[0].name], alone[each[0].name])


def test_whole_layers_train_together_too() -> None:
    runs = [run("a", r=None), run("b", r=None, seed=1, lr=1e-3)]
    together = trained(*runs)
    for each in runs:
        assert_same(together[each[0].name], trained(each)[each[0].name])


def test_best_and_last_weights() -> None:
    points: list[EpochPoint] = []
    # Rising validation loss after a while, because the rate is too high.
    runs = [run(weights, lr=0.5, epochs=8, weights=weights) for weights in ("best", "last")]
    outcomes = trained(*runs, points=points)
    losses = {name: [p.validation_loss for p in points if p.run == name] for name in outcomes}
    assert losses["best"] == pytest.approx(losses["last"]), "they differ in what is kept alone"
    assert losses["best"].index(min(losses["best"])) < 7, "the best epoch is not the last"
    for name, expected in (("best", min(losses["best"])), ("last", losses["last"][-1])):
        again = train_pack(
            make_model(), [run(name, lr=1e-300, epochs=1)], TRAIN, VALIDATION, loss, accuracy,
            states={name: outcomes[name].state}, on_epoch=points.extend,
        )  # fmt: skip
        list(again)
        assert points[-1].validation_loss == pytest.approx(expected)
    steps = [p.step for p in points if p.run == "best"]
    assert outcomes["best"].best_step == steps[losses["best"].index(min(losses["best"]))]


def test_a_diverged_run_leaves_alone_and_unnoticed() -> None:
    good = [run("good"), run("larger", r=5, seed=1)]
    together = trained(good[0], run("wild", lr=1e200, epochs=9), good[1])
    assert together["wild"].status == "diverged"
    assert together["wild"].reason == "the loss was not finite in epoch 1"
    for each in good:
        assert_same(together[each[0].name], trained(each)[each[0].name])
        assert all(value.isfinite().all() for value in together[each[0].name].state.values())


def test_all_may_diverge() -> None:
    assert [o.status for o in trained(run("a", lr=1e200), run("b", lr=1e200)).values()] == ["diverged"] * 2


@pytest.mark.parametrize("which", ["loss", "metric"])
@pytest.mark.parametrize("paused", [False, True])
def test_an_error_on_one_runs_outputs_ends_that_run(which: str, paused: bool) -> None:
    """The others are what they are without it, and a checkpoint within the epoch keeps the reason."""

    def strict(function: Any) -> Any:
        def checked(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
            if outputs.min() < -100:
                raise ValueError("not probable at all")
            return function(outputs, batch)

        return checked

    runs = [run("a"), run("wild", lr=50.0), run("b", r=1, seed=1)]
    functions = {"loss": loss, "metric": accuracy}
    functions[which] = strict(functions[which])

    def training() -> PackTraining:
        return PackTraining(make_model(), runs, TRAIN, VALIDATION, functions["loss"], functions["metric"])

    one, ended = training(), dict[str, Outcome]()
    while not one.done:
        epoch = one.advance(pause=lambda: paused)
        if epoch is not None:
            ended |= {outcome.name: outcome for outcome in epoch.ended}
        if paused and not one.done:
            state, one = one.state(), training()
            one.restore(state)
    assert ended["wild"].status == "failed"
    assert ended["wild"].reason is not None
    assert f"the {which} raised ValueError: not probable at all (test_loop.py, line" in ended["wild"].reason
    assert ended["wild"].reason.endswith(", in epoch 1")
    others = trained(runs[0], runs[2])
    for name in ("a", "b"):
        assert ended[name].status == "finished"
        for key, value in others[name].state.items():
            torch.testing.assert_close(ended[name].state[key], value, rtol=1e-10, atol=1e-10)


def test_a_point_for_each_run_and_epoch() -> None:
    points: list[EpochPoint] = []
    trained(run("a", epochs=2), run("b", epochs=3, schedule="cosine", lr=1.0), points=points)
    assert [(p.run, p.step) for p in points] == [("a", 3), ("b", 3), ("a", 6), ("b", 6), ("b", 9)]
    assert all(p.grad_norm > 0 and 0 <= p.metric <= 1 for p in points)
    # The rate of an epoch's last step: cosine over 9 steps, at steps 2, 5 and 8.
    expected = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 9)).item()) for step in (2, 5, 8)]
    assert [p.lr for p in points if p.run == "b"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_base_is_as_it_was(training: bool) -> None:
    model = make_model().train(training)
    model[3].eval()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    outcomes = train_pack(model, [run("a", epochs=1), run("b", epochs=2)], TRAIN, VALIDATION, loss, accuracy)
    for _ in outcomes:  # already when the first is handed out
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == asked
        assert all(p.grad is None for p in model.parameters())
        assert not any("forward" in vars(module) for module in model.modules())


def test_an_interrupt_leaves_the_base_as_it_was() -> None:
    model = make_model()
    calls = []

    def interrupting(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(outputs, batch)

    with pytest.raises(KeyboardInterrupt):
        list(train_pack(model, [run("a")], TRAIN, VALIDATION, interrupting, accuracy))
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make_model().parameters(), strict=True))


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch sizes \[4, 8\] can't share a pack"):
        trained(run("a"), run("b", batch_size=4))
    with pytest.raises(DataError, match=r"training data have \[21, 22\] rows"):
        trained(run("a"), train=(TRAIN[0], TRAIN[1][:21]))
    with pytest.raises(DataError, match=r"validation data have \[0\] rows"):
        trained(run("a"), validation=tuple(t[:0] for t in VALIDATION))


def test_forecasts_look_at_rows_of_all_sizes() -> None:
    """Rows are as long as their first number says; the largest come first in the data."""
    sizes = torch.arange(64, 0, -1)
    x = torch.arange(64).expand(64, 64).lt(sizes.unsqueeze(1)).double()
    seen: list[int] = []

    def trimmed(batch: Data) -> Data:
        width = int(batch[0].flatten(0, -2).sum(-1).max())
        seen.append(width)
        return batch[0][..., :width].unsqueeze(-1).expand(*batch[0].shape[:-1], width, 6), batch[1]

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.layer(x).mean(1), -1)

    data = (x, torch.zeros(64, dtype=torch.long))
    runs = [run("a", 2)]

    def bytes_in(order: Tensor) -> int:
        feed = Feed(prepare=trimmed, evaluation_order=lambda data: order)
        return PackTraining(Reads(), runs, data, data, loss, accuracy, feed=feed).peak_bytes()

    shortest_first = torch.arange(63, -1, -1)
    assert bytes_in(shortest_first) > 2 * bytes_in(shortest_first.flip(0))
    feed = Feed(prepare=trimmed, evaluation_order=lambda data: data[0].sum(-1).argsort())
    training = PackTraining(Reads(), runs, data, data, loss, accuracy, feed=feed)
    seen.clear()
    with training.attached(training=True):
        assert min(training.timed_step(place) for place in (0.0, 0.5, 1.0)) > 0
    small, middle, large = seen[-3:]
    assert large == 64 > middle > small
    with training.attached(training=False):
        seen.clear()
        assert training.timed_evaluation(16) > 0
        assert seen[0] == 40, "rows 24 to 40 of 64 by size"
        assert training.timed_evaluation(64) > 0
    assert training.validation_rows == seen[-1] == 64


def test_an_evaluation_is_timed_for_rows_of_mean_size() -> None:
    sizes = torch.tensor([1, 1, 1, 1, 1, 1, 10, 20])

    def trimmed(batch: Tensor) -> Tensor:
        return torch.zeros(*batch.shape, int(batch.max()))

    feed = Feed(prepare=trimmed)
    assert feed.mean_growth(sizes, torch.tensor([2, 3]), torch.arange(8)) == (1 + 1 + 1 + 20) / 4
    assert feed.mean_growth(sizes, torch.tensor([3, 4, 5]), torch.arange(8)) == (1 + 20) / 2
    assert feed.mean_growth(sizes, torch.arange(8), torch.arange(8)) == 1
