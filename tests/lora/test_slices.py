"""A fused projection adapted on slices is the separate projections adapted by the real PEFT."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapted_models import fill, gpt2, outputs
from quantised_layers import KINDS
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.errors import ConfigError, TargetError
from rankwise.lora import LoRAConfig, activate, adapter_tensors, count_parameters, eject, inject, merge, unmerge
from rankwise.lora.parameters import trainable_parameters
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from reference import update_difference
from rounding import alike

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Fused(nn.Module):
    def __init__(self, make=nn.Linear):
        super().__init__()
        self.qkv = make(6, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.softmax(q @ k.mT, -1) @ v


class Apart(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))
        weight = fused.qkv.weight if type(fused.qkv) is nn.Linear else fused.qkv.weight.T
        with torch.no_grad():
            for layer, w, b in zip((self.q, self.k, self.v), weight.chunk(3), fused.qkv.bias.chunk(3), strict=True):
                layer.weight.copy_(w)
                layer.bias.copy_(b)

    def forward(self, x):
        return torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)


def conv1d(d_in, d_out):
    return Conv1D(d_out, d_in)


def fused(make=nn.Linear):
    torch.manual_seed(0)
    return Fused(make).double()


X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
QV = {"qkv": ["0/3", "2/3"]}


def adapted(model, name="default", **settings):
    inject(model, LoRAConfig(**{"r": 2, "alpha": 6.0, "target_modules": "qkv", "slices": QV, **settings}), name)
    fill(tensor for pair in adapter_tensors(model, name).values() for tensor in pair)
    return model


def theirs_of(model):
    """PEFT's adapter on q and v as layers of their own, with the same A and B."""
    A, B = adapter_tensors(model)["qkv"]
    bare = copy.deepcopy(model)
    eject(bare)
    theirs = get_peft_model(Apart(bare).double(), LoraConfig(r=2, lora_alpha=6, target_modules=["q", "v"]))
    theirs = theirs.double()
    with torch.no_grad():
        for i, name in enumerate("qv"):
            layer = theirs.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(A[2 * i : 2 * i + 2])
            layer.lora_B["default"].weight.copy_(B[:, 2 * i : 2 * i + 2])
    return theirs


@pytest.mark.parametrize("make", [nn.Linear, conv1d])
def test_outputs_and_gradients_are_those_of_separate_layers_in_peft(make):
    model = adapted(fused(make))
    theirs = theirs_of(model)
    torch.testing.assert_close(model(X), theirs(X), rtol=0, atol=1e-12)
    model(X).square().sum().backward()
    theirs(X).square().sum().backward()
    A, B = adapter_tensors(model)["qkv"]
    layers = [theirs.base_model.model.get_submodule(name) for name in "qv"]
    torch.testing.assert_close(A.grad, torch.cat([layer.lora_A["default"].weight.grad for layer in layers]))
    torch.testing.assert_close(B.grad, torch.cat([layer.lora_B["default"].weight.grad for layer in layers], 1))
    assert count_parameters(model) == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


@pytest.mark.parametrize("make", [nn.Linear, conv1d])
def test_the_other_outputs_and_merging(make):
    model, base = fused(make), fused(make)
    inject(model, LoRAConfig(r=2, target_modules="qkv", slices=QV))
    assert alike(model(X), base(X))
    eject(model)
    adapted(model)
    assert alike(model.qkv(X)[..., 4:8], base.qkv(X)[..., 4:8])
    unmerged = model(X)
    assert alike(pickle.loads(pickle.dumps(model))(X), unmerged)
    assert alike(copy.deepcopy(model)(X), unmerged)
    merge(model)
    torch.testing.assert_close(model(X), unmerged, rtol=0, atol=1e-12)
    unmerge(model)
    assert alike(model(X), unmerged)


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_a_file_is_an_ordinary_adapter_that_peft_runs(scaling, tmp_path):
    model = adapted(fused(), scaling=scaling)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(fused(), str(tmp_path)).double()
    torch.testing.assert_close(theirs(X), model(X), rtol=0, atol=1e-6)
    again = fused()
    assert load_adapter(again, tmp_path).adapted[0].r == 4
    torch.testing.assert_close(again(X), model(X), rtol=0, atol=1e-12)


def test_gpt2(tmp_path):
    model = gpt2()
    report = inject(model, LoRAConfig(r=2, target_modules="c_attn", slices={"c_attn": ["0/3", (32, 48)]}))
    assert report.trainable_parameters == 2 * 2 * 2 * (16 + 16)
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(gpt2(), str(tmp_path))
    torch.testing.assert_close(outputs(theirs), outputs(model), rtol=1e-5, atol=1e-6)


def test_several_adapters_with_slices_of_their_own():
    model = adapted(fused())
    alone = model.qkv(X)
    adapted(model, "k", slices={"qkv": [(4, 8)]})
    k = model.qkv(X)
    adapted(model, "all", slices={})
    base = fused().qkv(X)
    activate(model, "default", "k")
    torch.testing.assert_close(model.qkv(X), alone + k - base)
    eject(model, "default")
    activate(model, "k")
    assert alike(model.qkv(X), k)
    activate(model, "all")
    assert not torch.isclose(model.qkv(X), base).all(0).all(0).any()


def test_over_a_quantised_layer():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("qkv", KINDS["nf4"](nn.Linear(64, 96)))
    x = torch.randn(3, 64)
    base = model(x)
    adapted(model)
    changed = (model(x) != base).any(0)
    assert changed[:32].all()
    assert changed[64:].all()
    assert not changed[32:64].any()


def test_inside_an_attention():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2, batch_first=True).double()
    base = copy.deepcopy(model)
    settings = {"target_modules": "in_proj_weight", "slices": {"in_proj_weight": ["0/3", "2/3"]}}
    inject(model, LoRAConfig(r=2, **settings))
    fill(adapter_tensors(model)["in_proj_weight"])
    out = model(X, X, X)[0]
    assert not torch.allclose(out, base(X, X, X)[0])
    merge(model)
    torch.testing.assert_close(model(X, X, X)[0], out)
    changed = (model.in_proj_weight != base.in_proj_weight).any(1)
    assert changed.tolist() == [True] * 6 + [False] * 6 + [True] * 6


def test_packs_give_the_updates_of_each_alone():
    model = fused()
    configs = {
        "qv": LoRAConfig(r=2, target_modules="qkv", slices=QV),
        "qv3": LoRAConfig(r=3, target_modules="qkv", slices=QV),
        "k": LoRAConfig(r=5, target_modules="qkv", slices={"qkv": ["1/3"]}),
        "all": LoRAConfig(r=2, target_modules="qkv"),
    }

    def loss(y, batch):
        return y.square().mean((1, 2))

    pack = Pack(model, [Member(name=name, lora=config) for name, config in configs.items()], loss)
    start = pack.states()
    with pack.attached(X, training=True):
        for _ in range(5):
            pack.step(X.unsqueeze(0), torch.full((4,), 1e-2, dtype=torch.float64), None, None)
    assert pack.notes == []
    for member in pack.members:
        assert member.parameter_count() == sum(t.numel() for t in start[member.member.name].values())
    for name, config in configs.items():
        alone = fused()
        inject(alone, config)
        optimiser = torch.optim.AdamW(trainable_parameters(alone), lr=1e-2, weight_decay=0.0)
        for _ in range(5):
            optimiser.zero_grad()
            loss(alone(X), X).mean().backward()
            optimiser.step()
        pairs = adapter_tensors(alone)["qkv"]
        theirs = {f"qkv.{letter}": tensor.detach() for letter, tensor in zip("AB", pairs, strict=True)}
        assert update_difference(pack.states()[name], theirs, start[name]) <= 1e-10


@pytest.mark.parametrize(
    ("slices", "error", "message"),
    [
        ({"qkv": ["0/5"]}, TargetError, '"0/5" is no slice of "qkv": its 12 outputs'),
        ({"qkv": ["3/3"]}, TargetError, '"3/3" is no slice of "qkv"'),
        ({"qkv": [(0, 8), (4, 12)]}, TargetError, r"The slices \[\(0, 8\), \(4, 12\)\] don't fit \"qkv\""),
        ({"qkv": [(0, 4), (4, 12)]}, TargetError, "and have one length"),
        ({"qkv": [(8, 16)]}, TargetError, "which has 12 outputs"),
        ({"kqv": ["0/3"]}, TargetError, 'No adapted module matches slices "kqv".* Did you mean "qkv"'),
        ({"qkv": "0/3"}, ConfigError, "slices of \"qkv\" are '0/3'; a list of parts"),
        ({"qkv": ["q"]}, ConfigError, "a list of parts"),
    ],
)
def test_what_is_refused(slices, error, message):
    with pytest.raises(error, match=message):
        inject(fused(), LoRAConfig(target_modules="qkv", slices=slices))


def test_dora_and_shared_weights_are_refused():
    with pytest.raises(TargetError, match='with variant="dora": DoRA needs'):
        adapted(fused(), variant="dora")
    model = nn.ModuleDict({"qkv": nn.Linear(6, 12), "again": nn.Linear(6, 12)})
    model["again"].weight = model["qkv"].weight
    with pytest.raises(TargetError, match='"qkv" can\'t be adapted on slices: its weight is shared'):
        adapted(model)
