"""Batches that pass in parts, models that run parts of themselves again, and adapters that leave their layer."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rankwise
from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.noise.keyed import Noise
from rankwise.pack.pack import Pack
from rankwise.streams import stream
from rankwise.train.settings import Training

Batch = tuple[Tensor, ...]
TOKENS = 3


class Flattening(nn.Module):
    """Drops tokens of all rows side by side, as transformers' OPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.reshape(-1, 4))
        return self.b(F.dropout(h, 0.5, self.training).view(x.shape)).squeeze(-1)


def squares(outputs: Tensor, batch: Batch) -> Tensor:
    return (outputs - batch[1]).square().mean(-1)


def gradients(rows: int | None, dropout: float) -> Tensor:
    torch.manual_seed(0)
    model = Flattening().double()
    x, y = torch.randn(2, 8, TOKENS, 4).double(), torch.randn(2, 8, TOKENS).double()
    members = [
        Member(name=f"{r}-{seed}", seed=seed, lora=LoRAConfig(r=r, dropout=dropout, target_modules=["a"]))
        for r in (1, 2)
        for seed in (0, 1)
    ]
    pack = Pack(model, members, squares)
    with pack.attached((x[0], y[0]), training=True):
        pack.gradients((x, y), rows)
    return pack.store.grads.clone()


def whole_then_rows(self: Noise, seeds: Sequence[int], call: tuple[str, int], *where: Any, coarse: bool) -> Tensor:
    """As on a GPU, where the first numbers of a draw depend on how many follow, and none are of 16 bits."""
    rows, total, shape, _ = where
    drawn = [torch.rand((total, *shape), generator=stream("noise", seed, *call)) for seed in seeds]
    return torch.stack(drawn)[:, rows]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["cpu", "gpu"])
def test_parts_have_the_whole_batchs_masks_where_tokens_lie_side_by_side(
    dropout: float, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rule == "gpu":
        monkeypatch.setattr(Noise, "_uniform", whole_then_rows)
    whole = gradients(None, dropout)
    for rows in (4, 3, 1):
        torch.testing.assert_close(gradients(rows, dropout), whole, rtol=1e-12, atol=1e-14)


def test_in_float16_a_part_without_anything_to_count_is_a_part_like_others() -> None:
    moved: dict[int | None, float] = {}
    for rows in (None, 1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4)).half()
        x, y, w = torch.randn(1, 4, 4).half(), torch.randn(1, 4, 4).half(), torch.tensor([[0.0, 1, 1, 1]])

        def loss(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            return (outputs.float() - batch[1].float()).square().mean(-1) * batch[2], batch[2]

        pack = Pack(model, [Member(name="only", lora=LoRAConfig(r=2))], loss)
        with pack.attached((x[0], y[0], w[0]), training=True):
            for _ in range(3):
                pack.step((x, y, w), torch.tensor([1e-2]), None, None, rows)
        assert pack.scaling_state()["left_out"].tolist() == [0.0]
        moved[rows] = float(pack.states()["only"]["0.B"].norm())
    assert moved[1] == pytest.approx(moved[None], rel=1e-3)


class Tied(nn.Module):
    """A head that has the embedding's weight, and a block that is computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(6, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        again: Tensor = checkpoint(self.block, h, use_reentrant=self.reentrant)  # pyright: ignore[reportAssignmentType]
        return self.head(again if self.training else self.block(h))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_refused_where_adapters_run_one_after_another(reentrant: bool) -> None:
    """The forward pass in the backward pass would have the base's weights: gradients without a word wrong."""
    members = [Member(name=n, lora=LoRAConfig(r=2, target_modules=["embed", "block.0"])) for n in "ab"]
    x = torch.randint(0, 6, (1, 4, 5))
    pack = Pack(
        Tied(reentrant), members, lambda outputs, batch: F.cross_entropy(outputs.flatten(0, 1), batch.flatten())
    )
    with (
        pytest.raises(PackError, match=r"runs again in the backward pass.*Switch checkpointing off"),
        pack.attached(x[0], training=True),
    ):
        pack.gradients(x)


@pytest.mark.parametrize("rungs", [(), (1,)])
def test_all_adapters_of_the_layer_where_the_rows_part_may_leave(rungs: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    configs = {
        "first": (LoRAConfig(r=2, target_modules=["0"]), Training(lr=1.0, epochs=1)),
        "last": (LoRAConfig(r=2, target_modules=["2"]), Training(lr=1.0, epochs=3)),
    }
    alone, both = (
        rankwise.sweep(
            model,
            {name: configs[name] for name in names},
            train=(x, x.sum(1, keepdim=True)),
            loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
            baseline=False,
            plan="grid",
            seeds=1,
            rungs=rungs,
            progress="quiet",
        )
        for names in (["last"], ["first", "last"])
    )
    for name, outcome in alone.swept.outcomes.items():
        for key, value in outcome.state.items():
            torch.testing.assert_close(both.swept.outcomes[name].state[key], value)
