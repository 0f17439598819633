"""A Sequential of torch's own modules passed by hand: the numbers are those of its modules; which models are that."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference as ref
from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.batches import WithProducts
from rankwise.pack.member import Member
from rankwise.pack.model.known import known_sequence
from rankwise.pack.pack import Pack
from rankwise.train.data.feed import Feed, unchanged
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training

DOUBLE = torch.float64


def loss(outputs: Tensor, batch: Any) -> Tensor:
    return (outputs - batch[1]).square().mean(1)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Sequential(*between, nn.Linear(8, 8)),
        nn.Linear(8, 3),
        nn.Tanh(),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "activations with and without a rule": lambda: mlp(nn.GELU(), nn.LayerNorm(8), nn.ReLU(inplace=True)),
    "what autograd does, at both ends": lambda: mlp(nn.Dropout(0.2), nn.ELU(inplace=True), nn.Dropout(0.2)),
    "one activation twice": lambda: (lambda act: nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 3), act))(nn.ReLU()),
    "all to the end by rules": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Dropout(0.3), nn.ReLU(), nn.LogSoftmax(-1)
    ),
    "a rule that autograd follows": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.LogSoftmax(1), nn.Tanh(), nn.Linear(8, 3)
    ),
    "frozen layers before, between and after": lambda: nn.Sequential(
        nn.Linear(6, 6), nn.Dropout(0.1), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ),
}


def adapters(seeds: tuple[int, ...], **settings: Any) -> list[Member]:
    return [
        Member(name=f"r{r}-{s}", seed=s, lora=LoRAConfig(r=r, seed=s, **settings)) for s in seeds for r in (1, 4, 5)
    ]


def trained(model: nn.Module, members: list[Member], by_hand: bool) -> tuple[dict[str, Any], Tensor]:
    """The adapters after five steps, and their losses; by hand, or through the modules."""
    seeds = {member.seed for member in members}
    pack = Pack(model, members, loss)
    if not by_hand:
        # A hook that does nothing: whoever has one gets the modules' own calls.
        model.register_forward_hook(lambda module, args, output: None)
    x, y = (torch.rand(len(seeds), 16, n, generator=ref.keyed(n), dtype=DOUBLE) for n in (6, 3))
    rates, losses = torch.full((len(members),), 1e-2, dtype=DOUBLE), torch.zeros(0)
    with pack.attached((x[0], y[0]), training=True):
        assert (pack._running.chain is not None) == by_hand  # pyright: ignore[reportPrivateUsage]
        for step in range(5):
            losses = pack.step((x, y), rates, None, None, rows=7 if step == 3 else None)
    with pack.attached((x[0], y[0]), training=False):
        outputs = pack.outputs((x[0], y[0]))
    return pack.states(), torch.cat([losses, outputs.flatten()])


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("name", MODELS)
def test_by_hand_as_through_the_modules(name: str, seeds: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().to(DOUBLE)
    check(model, adapters(seeds, target_modules=["2", "6"] if "frozen" in name else "all-linear"))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("name", [name for name in MODELS if "with and without" not in name])
def test_layers_trained_in_full(name: str, seeds: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().to(DOUBLE)
    all_of_it = tuple(path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    check(model, [Member(name=f"{n}-{s}", seed=s, modules_to_save=all_of_it) for s in seeds for n in "ab"])


@pytest.mark.parametrize("saved", ["0", "4"])
def test_a_layer_trained_in_full_beside_adapters(saved: str) -> None:
    torch.manual_seed(0)
    targets = [path for path in ("0", "3.0", "4") if path != saved]
    configs = [LoRAConfig(r=2, seed=s, target_modules=targets) for s in (0, 1)]
    check(
        mlp().to(DOUBLE),
        [Member(name=f"{c.seed}", seed=c.seed, lora=c, modules_to_save=(saved,)) for c in configs],
    )


def check(model: nn.Module, members: list[Member]) -> None:
    (states, losses), (others, other_losses) = (trained(model, members, by_hand) for by_hand in (True, False))
    torch.testing.assert_close(losses, other_losses, rtol=0, atol=1e-13)
    for member, state in states.items():
        for key, value in state.items():
            torch.testing.assert_close(value, others[member][key], rtol=0, atol=1e-12)


class Own(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_pre_hook(lambda module, args: None)
    return model


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    setattr(model[0], "forward", lambda x: x)  # noqa: B010  (no type of torch's forward)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        lambda: nn.Sequential(nn.Linear(2, 2), Own()),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.RReLU()),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=0)),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LayerNorm((3, 2))),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
        hooked,
        replaced,
    ],
)
def test_what_runs_more_than_torchs_own_code_is_not_known(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert [m for _, m in known_sequence(model)] == ([model] if type(model) is nn.Linear else [])


def test_rows_that_softmax_mixes_are_refused_all_the_same() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=0))
    pack = Pack(model, [Member(name="a", lora=LoRAConfig(r=1))], loss)
    with pytest.raises(PackError, match="depends on the other rows"), pack.attached(torch.rand(4, 6), training=True):
        pass


def test_a_hook_for_all_modules_is_seen() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert known_sequence(model)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        assert not known_sequence(model)
    finally:
        handle.remove()


def wide(*first: nn.Module) -> nn.Module:
    """A model whose first layer is much wider at its input."""
    return nn.Sequential(
        *first, nn.Linear(32, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )


class Read:
    """The data that a loss has read."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        x, y = batch
        self.batches.append(x.shape)
        return (outputs - y).square().mean(1)


def training_of(model: nn.Module, members: list[Member], prepare: Callable[[Any], Any] = unchanged) -> PackTraining:
    train, validation = (
        (
            torch.rand(n, 32, generator=ref.keyed(n), dtype=DOUBLE),
            torch.rand(n, 3, generator=ref.keyed(n), dtype=DOUBLE),
        )
        for n in (50, 30)
    )
    runs = [(member, Training(lr=1e-2, epochs=4, batch_size=16)) for member in members]
    read = Read()
    return PackTraining(model, runs, train, validation, read.loss, read.loss, feed=Feed(prepare=prepare))


MEMBERS: dict[str, Callable[[], list[Member]]] = {
    "adapters": lambda: adapters((0, 1, 2)),
    "one": lambda: adapters((0,))[:1],
    "adapters that start off the base": lambda: adapters((0, 1), init="pissa"),
    "other layers alone": lambda: adapters((0,), target_modules=["3", "5"]),
    "dropout of their own": lambda: adapters((0, 1), dropout=0.2),
    "in full": lambda: [Member(name=f"{s}", seed=s, modules_to_save=("0", "3", "5")) for s in (0, 1)],
}
HAVE_PRODUCTS = {"adapters", "one", "adapters that start off the base"}


@pytest.mark.parametrize("which", MEMBERS)
def test_the_first_layers_product_is_taken_once_for_each_row(which: str) -> None:
    """Curve and adapters are those of a step that computes it: here of a feed that passes rows as they are, too, which
    nobody can know."""
    torch.manual_seed(0)
    model = wide().to(DOUBLE)
    found: list[tuple[list[Any], dict[str, Any]]] = []
    for prepare in (unchanged, lambda batch: batch):
        torch.manual_seed(0)
        training = training_of(model, MEMBERS[which](), prepare)
        points = [point for _ in range(3) if (epoch := training.advance()) for point in epoch.points]
        held = [isinstance(data, WithProducts) for data in (training._train, training._validation)]  # pyright: ignore[reportPrivateUsage]
        assert held == [prepare is unchanged and which in HAVE_PRODUCTS] * 2
        found.append(([(p.run, p.train_loss, p.validation_loss) for p in points], training.final_states()))
    (points, states), (others, other_states) = found
    for (name, *losses), (other, *other_losses) in zip(points, others, strict=True):
        assert name == other
        assert losses == pytest.approx(other_losses, rel=1e-12)
    for name, state in states.items():
        for key, value in state.items():
            torch.testing.assert_close(value, other_states[name][key], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: wide(nn.Identity()),
        lambda: wide(nn.LayerNorm(32)),
        lambda: nn.Sequential(nn.Linear(32, 9), nn.Linear(9, 3)),
    ],
)
def test_products_are_not_kept_of_what_others_change_or_where_they_are_large(make: Callable[[], nn.Module]) -> None:
    training = training_of(make().to(DOUBLE), adapters((0, 1)))
    training.advance()
    assert not isinstance(training._train, WithProducts)  # pyright: ignore[reportPrivateUsage]


def test_a_pass_leaves_the_products_as_they_are() -> None:
    torch.manual_seed(0)
    model, members = wide().to(DOUBLE), adapters((0,))[:1]
    pack = Pack(model, members, loss)
    x, y = (torch.rand(16, n, generator=ref.keyed(n), dtype=DOUBLE) for n in (32, 3))
    with pack.attached((x, y), training=False):
        data = pack.with_products((x, y))
        assert isinstance(data, WithProducts)
        torch.testing.assert_close(data.products, x @ model[0].weight.T + model[0].bias)
        before = data.products.clone()
        torch.testing.assert_close(pack.outputs(data), pack.outputs((x, y)), rtol=0, atol=1e-14)
        assert torch.equal(data.products, before)
        assert pack.with_products(data) is data
