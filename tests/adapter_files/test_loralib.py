"""Files that loralib wrote give the same outputs on the plain model."""

import copy
import re

import loralib
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rankwise.adapter_files import load_adapter, load_loralib, save_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import merge


class Plain(nn.Module):
    linear, embedding, fused = nn.Linear, nn.Embedding, nn.Linear

    def __init__(self):
        super().__init__()
        self.tokens = self.embedding(11, 6)
        self.up = self.linear(6, 8)
        self.qkv = self.fused(8, 12)
        self.norm = nn.LayerNorm(12)

    def forward(self, ids):
        return self.norm(self.qkv(self.up(self.tokens(ids)).relu()))


class Theirs(Plain):
    linear = staticmethod(lambda n, m: loralib.Linear(n, m, r=2, lora_alpha=6))
    embedding = staticmethod(lambda n, m: loralib.Embedding(n, m, r=3, lora_alpha=6))
    fused = staticmethod(lambda n, m: loralib.MergedLinear(n, m, r=2, lora_alpha=6, enable_lora=[True, False, True]))


IDS = torch.arange(10).view(2, 5)


def trained(bias="none"):
    """loralib's model after training, and the plain one it started as."""
    torch.manual_seed(0)
    model, plain = Theirs(), Plain()
    plain.load_state_dict({key: value.clone() for key, value in model.state_dict().items() if "lora_" not in key})
    loralib.mark_only_lora_as_trainable(model, bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model, plain


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("form", ["state", "pickle", "safetensors"])
def test_the_same_outputs(bias, form, tmp_path):
    model, plain = trained(bias)
    state = loralib.lora_state_dict(model, bias=bias)
    source = {"state": state, "pickle": tmp_path / "lora.pt", "safetensors": tmp_path / "lora.safetensors"}[form]
    torch.save(state, tmp_path / "lora.pt")
    save_file(state, tmp_path / "lora.safetensors")
    before = plain(IDS)
    report = load_loralib(plain, source, 6, slices={"qkv": ["0/3", "2/3"]}, allow_pickle=form == "pickle")
    assert [(target.name, target.r) for target in report.adapted] == [("tokens", 3), ("up", 2), ("qkv", 2)]
    wanted = model(IDS).detach()
    assert not torch.allclose(plain(IDS), before, atol=1e-2)
    torch.testing.assert_close(plain(IDS), wanted)
    _, again = trained(bias)
    load_adapter(again, save_adapter(plain, tmp_path / "saved"))
    torch.testing.assert_close(again(IDS), wanted)
    merge(plain)
    torch.testing.assert_close(plain(IDS), wanted)


def test_a_merged_linear_needs_its_parts():
    model, plain = trained()
    state = loralib.lora_state_dict(model)
    with pytest.raises(AdapterFileError, match=r'MergedLinear with 2 adapted parts: pass slices=\{"qkv"'):
        load_loralib(plain, state, 6)
    assert not any("lora" in key for key in plain.state_dict())


CONVOLUTIONS = [
    (2, (3, 40, 3), {}, 18),  # r k^2 < 27, 40
    (2, (16, 40, 3), {"stride": 2, "padding": 1, "bias": False}, 18),
    (2, (3, 4, 3), {"padding": 2, "dilation": 2}, 4),  # as many as outputs
    (2, (1, 40, 3), {}, 9),  # as many as inputs
    (2, (4, 6, 3), {"groups": 2}, 6),
    (2, (6, 6, 3), {"groups": 6}, 6),
    (2, (4, 12, 2), {"groups": 2, "padding": "same", "padding_mode": "circular"}, 8),
    (1, (5, 7, 1), {}, 2),
    (3, (5, 7, 1), {"stride": 2}, 2),
]


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize(("n_dims", "sizes", "settings", "r"), CONVOLUTIONS)
def test_convolutions_give_the_same_outputs(n_dims, sizes, settings, r, bias, tmp_path):
    torch.manual_seed(0)
    name = f"Conv{n_dims}d"
    theirs = nn.Sequential(getattr(loralib, name)(*sizes, r=2, lora_alpha=6, **settings))
    plain = nn.Sequential(getattr(nn, name)(*sizes, **settings))
    plain[0].load_state_dict({key: value.clone() for key, value in theirs[0].conv.state_dict().items()})
    again = copy.deepcopy(plain)
    loralib.mark_only_lora_as_trainable(theirs, bias=bias)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    x = torch.randn(2, sizes[0], *[7] * n_dims)
    wanted = theirs(x).detach()
    assert not torch.allclose(plain(x), wanted, atol=1e-2)
    report = load_loralib(plain, loralib.lora_state_dict(theirs, bias=bias), 6)
    assert [target.r for target in report.adapted] == [r]
    torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
    save_adapter(plain, tmp_path / "saved")
    merge(plain)
    torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain[0].weight, theirs.eval()[0].conv.weight, rtol=1e-6, atol=1e-6)
    load_adapter(again, tmp_path / "saved")
    torch.testing.assert_close(again(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "plain"),
    [
        (lambda: loralib.Conv2d(3, 4, 3, r=2), lambda: nn.Conv2d(3, 4, 5)),
        (lambda: loralib.Conv2d(3, 4, 3, r=2), lambda: nn.Conv2d(3, 4, (3, 5))),
        (lambda: loralib.Conv2d(3, 4, 3, r=2), lambda: nn.Conv2d(4, 4, 3)),
        # With a kernel above 1 it can't run in loralib itself.
        (lambda: loralib.Conv1d(3, 4, 3, r=2), lambda: nn.Conv1d(3, 4, 3)),
    ],
)
def test_a_convolution_that_does_not_fit(theirs, plain):
    state = loralib.lora_state_dict(nn.Sequential(theirs()))
    with pytest.raises(AdapterFileError, match=r"loralib's for the Conv\dd here would be \('r \* k', \d+\)"):
        load_loralib(nn.Sequential(plain()), state, 2)


A, B = torch.ones(2, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, 'holds no "lora_A"'),
        ({"0.lora_A": A}, 'has no "0.lora_B", the other half'),
        ({"0.lora_A": A, "0.lora_B": B, "0.weight": torch.ones(4, 3)}, 'has "0.weight" of shape (4, 3)'),
        ({"0.lora_A": A.int(), "0.lora_B": B}, "type torch.int32; loralib writes matrices"),
        ({"1.lora_A": A, "1.lora_B": B}, 'tensors for "1", which the model lacks.'),
        ({"0.lora_A": torch.ones(2, 5), "0.lora_B": B}, "(2, 5) and (4, 2); the Linear here needs (2, 3) and (4, 2)."),
        ({"0.lora_A": torch.ones(0, 3), "0.lora_B": torch.ones(4, 0)}, "tensors without numbers"),
        ({"0.lora_A": A, "0.lora_B": B, "0.bias": torch.ones(9)}, '"0.bias" of shape (9,); the model has (4,) there'),
        ({"0.lora_A": A, "0.lora_B": B, "5.bias": torch.ones(4)}, "the model lacks it"),
    ],
)
def test_what_does_not_fit(state, message):
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(AdapterFileError, match=re.escape(message)):
        load_loralib(model, state, 1)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_files_that_are_none(tmp_path):
    torch.save({"0.lora_A": A, "0.lora_B": B}, tmp_path / "lora.pt")
    with pytest.raises(AdapterFileError, match="is a pickle, an unsafe format"):
        load_loralib(nn.Linear(3, 4), tmp_path / "lora.pt", 1)
    with pytest.raises(AdapterFileError, match="is no file"):
        load_loralib(nn.Linear(3, 4), tmp_path / "nowhere.pt", 1)
