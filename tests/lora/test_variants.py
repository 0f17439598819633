"""A variant is what its declaration says: one without A and B runs everywhere, and padding leaves outputs alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rankwise.lora import LoRAConfig, activate, by_row, count_parameters, inject, merge, trainable_parameters, unmerge
from rankwise.lora.adapter import adapted_layers
from rankwise.lora.variants import VARIANTS, Variant, VariantTensor
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rounding import alike
from small_sweep import loss, small_model, some_data


def scaled_outputs(kind, layer, x, y, tensors, scale, rest, named) -> Tensor:
    return tensors["v"] * (y if layer.bias is None else y - layer.bias)


# Like (IA)^3 (Liu et al., 2022): a vector v for each layer, W' = (1 + v) W.
IA3 = Variant(
    "IA3",
    (VariantTensor("v", lambda sizes: (sizes.d_out,)),),
    start=lambda site: {"v": torch.zeros(site.sizes.d_out)},
    forward=scaled_outputs,
    delta=lambda kind, layer, tensors, scale: tensors["v"].unsqueeze(1) * layer.weight.detach(),
)


@pytest.fixture
def ia3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "ia3", IA3)


def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()


X = torch.linspace(-1, 1, 24).view(4, 6)


def test_a_variant_without_a_and_b_acts_merges_and_counts(ia3: None) -> None:
    net = model()
    base = net(X)
    report = inject(net, LoRAConfig(variant="ia3"))
    assert alike(net(X), base)
    assert report.trainable_parameters == count_parameters(net) == 8 + 3
    assert [tuple(p.shape) for p in trainable_parameters(net)] == [(8,), (3,)]
    with torch.no_grad():
        for parameter in trainable_parameters(net):
            parameter.fill_(0.5)
    expected = 1.5 * torch.relu(1.5 * X @ net[0].weight.T) @ net[2].weight.T
    torch.testing.assert_close(net(X), expected)
    merge(net)
    torch.testing.assert_close(net(X), expected)
    unmerge(net)
    inject(net, LoRAConfig(r=2), "plain")
    activate(net, "default")
    with torch.no_grad(), by_row(net, ["default", None, "plain", "default"]):
        torch.testing.assert_close(net(X), torch.stack([expected[0], base[1], base[2], expected[3]]))


def test_it_trains_in_a_pack_as_alone(ia3: None) -> None:
    net, (x, y) = small_model(), some_data(16, 0)
    pack = Pack(net, [Member(name="a", lora=LoRAConfig(variant="ia3")), Member(name="b", lora=LoRAConfig(r=2))], loss)
    with pack.attached((x[:2], y[:2]), training=True):
        for _ in range(3):
            pack.step((x.unsqueeze(0), y.unsqueeze(0)), torch.tensor([0.1, 0.01]), None, None)
    assert pack.notes == []
    ours = pack.states()["a"]
    assert {key: tuple(value.shape) for key, value in ours.items()} == {"0.v": (8,), "2.v": (3,)}
    inject(net, LoRAConfig(variant="ia3"))
    optimiser = torch.optim.AdamW(trainable_parameters(net), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        optimiser.zero_grad()
        loss(net(x), (x, y)).mean().backward()
        optimiser.step()
    for path, (_, lora) in adapted_layers(net).items():
        torch.testing.assert_close(lora.v["default"].detach(), ours[f"{path}.v"])


def test_a_padding_of_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA with a factor for each of its r directions, padded with 1: A and B are zero there."""
    lora = VARIANTS["lora"]
    factor = VariantTensor("g", lambda sizes: (sizes.r,), rank_dim=0, pad=1.0)

    def forward(kind, layer, x, y, t, scale, rest, named) -> Tensor:
        return lora.forward(kind, layer, x, y, {"A": t["g"].unsqueeze(1) * t["A"], "B": t["B"]}, scale, rest, named)

    def delta(kind, layer, t, scale) -> Tensor:
        return lora.delta(kind, layer, {"A": t["g"].unsqueeze(1) * t["A"], "B": t["B"]}, scale)

    gated = replace(
        lora,
        tensors=(*lora.tensors, factor),
        start=lambda site: {**lora.start(site), "g": torch.ones(site.sizes.r)},
        forward=forward,
        delta=delta,
    )
    monkeypatch.setitem(VARIANTS, "gated", gated)
    net, (x, y) = small_model(), some_data(16, 0)
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, variant="gated")) for r in (1, 3)]
    packs = [Pack(net, chosen, loss) for chosen in (members, members[:1])]
    for pack in packs:
        with pack.attached((x[:2], y[:2]), training=True):
            for _ in range(3):
                pack.step((x.unsqueeze(0), y.unsqueeze(0)), torch.full((len(pack),), 0.05), None, None)
    together, alone = (pack.states()["r1"] for pack in packs)
    assert together["0.g"].shape == (1,)
    assert not torch.equal(together["0.g"], torch.ones(1))
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value)
    bucket = packs[0].store.buckets[0]
    assert torch.equal(bucket.view(packs[0].store.theta, "0.g")[0, 1:], torch.ones(2))


def test_a_shared_tensor_is_frozen() -> None:
    with pytest.raises(ValueError, match='"A" is shared and trained'):
        VariantTensor("A", lambda sizes: (sizes.r,), shared=True)
