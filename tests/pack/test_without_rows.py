"""Layers whose input has no rows of the batch (positions, learned queries) run in a pack like all others."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack

WIDTH, TOKENS = 8, 5
WHOLE = ("words", "positions", "norm", "ask", "out")


class Positions(nn.Module):
    """Words plus positions, and a learned query that pools them."""

    def __init__(self, leading: bool) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.norm, self.ask, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("query", torch.randn(1, WIDTH) if leading else torch.randn(1, 1, WIDTH)[0])
        self.leading = leading

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        x = self.words(ids) + self.positions(places.unsqueeze(0) if self.leading else places)
        query = self.ask(self.norm(self.query)).unsqueeze(-2)
        return self.out((x * query).tanh().mean(1))


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs, batch[1], reduction="none")


def gradients(model: nn.Module, members: Sequence[Member], batch: tuple[Tensor, Tensor]) -> tuple[Pack, list[Tensor]]:
    pack = Pack(model, members, loss)
    together = tuple(t.unsqueeze(0) for t in batch)
    with pack.attached(batch, training=True):
        pack.store.randomise()
        pack.gradients(together)
    states = pack.store.read(pack.store.grads)
    return pack, [tensor for member in members for tensor in states[member.name].values()]


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize(
    "one",
    [
        {"modules_to_save": WHOLE},
        {"modules_to_save": ("positions",)},
        {"lora": LoRAConfig(r=2, target_modules=["words", "positions"])},
        {"lora": LoRAConfig(r=2, target_modules=["ask", "out"]), "modules_to_save": ("norm",)},
        {"lora": LoRAConfig(r=2, target_modules=["ask", "out"], dropout=0.4)},
    ],
    ids=["all", "positions", "low-rank embeddings", "linear of a query", "with dropout"],
)
def test_each_adapter_has_the_gradients_that_it_has_alone(leading: bool, one: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = Positions(leading).double()
    batch = torch.randint(20, (4, TOKENS)), torch.randint(3, (4,))
    members = [Member(name=f"m{i}", **one) for i in range(3)]  # pyright: ignore[reportArgumentType]
    pack, ours = gradients(model, members, batch)
    assert not pack.notes  # in particular not that they run one after another
    alone = [tensor for member in members for tensor in gradients(model, [member], batch)[1]]
    assert any(bool(tensor.abs().max() > 0) for tensor in alone)
    for mine, its in zip(ours, alone, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-13)


def test_whole_models_have_autograd_s_gradients() -> None:
    torch.manual_seed(0)
    model = Positions(True).double()
    batch = torch.randint(20, (4, TOKENS)), torch.randint(3, (4,))
    pack = Pack(model, [Member(name=f"m{i}", modules_to_save=WHOLE) for i in range(2)], loss)
    with pack.attached(batch, training=True):
        pack.gradients(tuple(t.unsqueeze(0) for t in batch))
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(loss(model(batch[0]), batch).mean(), list(parameters.values()))
    for state in pack.store.read(pack.store.grads).values():
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(state[name], gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("leading", [True, False])
def test_batches_of_another_length_than_the_example(leading: bool) -> None:
    torch.manual_seed(0)
    model = Positions(leading).double()
    example = torch.randint(20, (4, TOKENS)), torch.randint(3, (4,))
    members = [Member(name=f"m{i}", modules_to_save=WHOLE) for i in range(3)]
    found: list[list[Tensor]] = []
    for own in (members, members[:1]):
        pack = Pack(model, own, loss)
        with pack.attached(example, training=True):
            pack.gradients(tuple(t[:, :2].unsqueeze(0) if t.dim() == 2 else t.unsqueeze(0) for t in example))
        assert not pack.notes
        found.append(list(pack.store.read(pack.store.grads)["m0"].values()))
    for ours, alone in zip(*found, strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-10, atol=1e-13)


class Unbatchable(nn.Module):
    """A model that takes no more than four rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.zeros(4, 3)[: len(x)]


@pytest.mark.parametrize(
    ("member", "subject"),
    [
        ({"modules_to_save": ("layer",)}, "The runs"),
        ({"lora": LoRAConfig(r=1, target_modules=["layer"])}, "The adapters"),
    ],
)
def test_notes_are_in_words_of_rankwise(member: dict[str, object], subject: str) -> None:
    batch = torch.randn(4, WIDTH), torch.randint(3, (4,))
    pack = Pack(Unbatchable(), [Member(name=f"m{i}", **member) for i in range(3)], loss)  # pyright: ignore[reportArgumentType]
    with pack.attached(batch, training=True):
        pass
    assert pack.notes == [
        f"{subject} run one after another, since the model can't compute the rows of all of them in one forward pass."
    ]
