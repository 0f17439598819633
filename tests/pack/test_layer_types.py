"""Every layer type in a pack: the updates that `inject` and torch's AdamW give each adapter alone."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.lora import adapter_tensors, trainable_parameters
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import inject
from rankwise.lora.layer_types import LAYER_TYPES, register_layer_type
from rankwise.lora.layer_types.linear import LINEAR
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from reference import update_difference

STEPS = 5
X = torch.randn(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


class Own(nn.Module):
    """A layer of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


class Headed(nn.Module):
    def __init__(self, inner: nn.Module, run: Callable[[Any, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.inner, self.run, self.head = inner, run, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.inner, x))


def calls(inner: Any, x: Tensor) -> Tensor:
    return inner(x).mean(1)


def last(inner: Any, x: Tensor) -> Tensor:
    return inner(x)[0][:, -1]


def over_places(inner: Any, x: Tensor) -> Tensor:
    return inner(x).mean(-1)


def looks_up(inner: Any, x: Tensor) -> Tensor:
    return inner((3 * x[..., 0]).long() % 9).mean(1)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], int, dict[str, Any], bool]] = {
    "linear": (lambda: nn.Linear(4, 6), calls, 6, {}, True),
    "slices": (lambda: nn.Linear(4, 6), calls, 6, {"slices": {"inner": ["0/3", "2/3"]}}, True),
    "conv1d of transformers": (lambda: Conv1D(6, 4), calls, 6, {}, True),
    "own": (Own, calls, 4, {}, True),
    "embedding": (lambda: nn.Embedding(9, 4, 1), looks_up, 4, {}, True),
    "convolution": (
        lambda: nn.Conv1d(5, 6, 3, padding="same", dilation=2, padding_mode="circular"), over_places, 6, {}, True
    ),
    "transposed convolution": (
        lambda: nn.ConvTranspose1d(5, 10, 3, stride=2, output_padding=1, groups=5), over_places, 10, {}, True
    ),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True), lambda inner, x: inner(x, x, x)[0].mean(1), 4, {}, False
    ),
    "attention, kdim and vdim": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
        lambda inner, x: inner(x, x[..., :3], x[..., :2])[0].mean(1), 4, {}, False,
    ),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), calls, 4,
        {"target_modules": "all-linear"}, False,
    ),
    "lstm": (lambda: nn.LSTM(4, 3, batch_first=True), last, 3, {}, False),
    "gru": (lambda: nn.GRU(4, 3, batch_first=True), last, 3, {}, False),
    "a stack": (
        lambda: nn.Bilinear(4, 4, 4), lambda inner, x: inner(x, x).mean(1), 4, {"target_modules": "weight"}, False
    ),
}  # fmt: skip
"""Name -> the layer, how it is run, its outputs, settings, whether the rows of all adapters pass it together."""


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", KINDS)
def test_updates_are_those_of_each_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.lora.layer_types.LAYER_TYPES", dict(LAYER_TYPES))
    register_layer_type(Own, replace(LINEAR, name="Own", linear=False))
    make, run, width, settings, batched = KINDS[name]
    torch.manual_seed(0)
    model = Headed(make(), run, width).double()
    settings = {"target_modules": "inner", **settings}
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, **settings)) for r in (1, 3, 6)]
    batch = {"x": X, "y": Y}
    pack = Pack(model, members, lambda out, b: F.cross_entropy(out, b["y"]), call=lambda m, b: m(b["x"]))
    start = pack.states()
    with pack.attached(batch, training=True):
        for _ in range(STEPS):
            rates = torch.full((3,), 1e-2, dtype=torch.float64)
            pack.step({key: value.unsqueeze(0) for key, value in batch.items()}, rates, None, None)
    assert any("run one after another" in note for note in pack.notes) != batched
    for member in members:
        alone = copy.deepcopy(model)
        assert member.lora is not None
        inject(alone, member.lora)
        optimiser = torch.optim.AdamW(trainable_parameters(alone), lr=1e-2, weight_decay=0.0)
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(alone(X), Y).backward()
            optimiser.step()
        pairs = adapter_tensors(alone).items()
        theirs = {f"{path}.{key}": t.detach() for path, pair in pairs for key, t in zip("AB", pair, strict=True)}
        assert update_difference(pack.states()[member.name], theirs, start[member.name]) <= 1e-10
