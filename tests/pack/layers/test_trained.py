"""Gradients of layers that adapters train in full are autograd's, where Rankwise writes them itself too."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from rankwise.pack.layers.trained import is_plain_embedding
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack

Batch = dict[str, Tensor]


class Reader(nn.Module):
    """Tokens and places in two tables, layers of both layouts, with and without a bias."""

    def __init__(self, *, tied: bool = False, differentiates: bool = False, **table: Any) -> None:
        super().__init__()
        self.differentiates = differentiates
        self.words, self.places = nn.Embedding(12, 6, **table), nn.Embedding(5, 6)
        self.up, self.across, self.out = nn.Linear(6, 8), Conv1D(6, 8), nn.Linear(6, 12, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        y = self.out(self.across(torch.tanh(self.up(x))))
        return y * self.slope(x) if self.differentiates else y

    def slope(self, x: Tensor) -> Tensor:
        """A factor for each row from derivatives that are no part of the step's."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.up(x).square().sum(), x)[0].mean((1, 2), keepdim=True)


def loss(outputs: Tensor, batch: Batch) -> Tensor:
    each = F.cross_entropy(outputs.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    return each.view(len(outputs), -1).mean(1)


def batches(seeds: int) -> Batch:
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 12, (seeds, 7, 5), generator=draws)
    ids[:, :, 3:] = 0  # the padding
    return {"ids": ids, "labels": torch.randint(0, 12, (seeds, 7, 5), generator=draws)}


def members(n: int, whole: Sequence[str]) -> list[Member]:
    return [Member(name=f"m{seed}", seed=seed, modules_to_save=tuple(whole)) for seed in range(n)]


def call(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["ids"])


def gradients_of(pack: Pack, batch: Batch, rows: int | None = None) -> dict[str, dict[str, Tensor]]:
    with pack.attached({key: t[0] for key, t in batch.items()}, training=True):
        pack.gradients(batch, rows)
        return pack.store.read(pack.store.grads)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize(
    "table",
    [
        {},
        {"padding_idx": 0},
        {"padding_idx": -1},
        {"scale_grad_by_freq": True},
        {"tied": True},
        {"differentiates": True},
    ],
    ids=["plain", "padding", "last", "by frequency", "tied", "differentiates"],
)
def test_gradients_of_whole_layers_are_those_of_autograd(table: dict[str, Any], rows: int | None) -> None:
    torch.manual_seed(0)
    model, batch = Reader(**table).double(), batches(3)
    whole = ["words", "places", "up", "across", *([] if "tied" in table else ["out"])]
    pack = Pack(model, members(3, whole), loss, call=call)
    if rows is not None and "scale_grad_by_freq" in table:
        return  # the frequencies are those of the part
    ours = gradients_of(pack, batch, rows)
    for k, (name, state) in enumerate(pack.states().items()):
        own = copy.deepcopy(model)
        leaves = {key: value.clone().requires_grad_() for key, value in state.items()}
        outputs = functional_call(own, leaves, (batch["ids"][k],))
        loss(outputs, {key: t[k] for key, t in batch.items()}).mean().backward()
        assert ours[name].keys() == leaves.keys()
        for key, leaf in leaves.items():
            assert leaf.grad is not None
            torch.testing.assert_close(ours[name][key], leaf.grad, rtol=0, atol=1e-14)


def test_what_counts_as_a_plain_table() -> None:
    class Other(nn.Embedding):
        pass

    assert is_plain_embedding(nn.Embedding(3, 2, padding_idx=0))
    others = [nn.Embedding(3, 2, max_norm=1.0), nn.Embedding(3, 2, sparse=True), Other(3, 2), nn.Linear(3, 2)]
    assert not any(map(is_plain_embedding, others))
