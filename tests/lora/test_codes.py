"""Weights that hold codes: 8-bit floats, plain or turned into numbers by their class."""

import pytest
import torch
from torch import nn

from adapted_models import fill
from rankwise import quantize
from rankwise.errors import AdapterError, PackError, TargetError
from rankwise.lora import LoRAConfig, inject, merge, trainable_parameters
from rankwise.pack.member import Member
from rankwise.pack.resolved import resolve

FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz]


class Scaled(nn.Linear):
    """As transformers' FP8Linear: codes, and a scale for all or for each block of rows."""

    def __init__(self, plain, dtype, blocks=1):
        super().__init__(plain.in_features, plain.out_features)
        scale = plain.weight.detach().unflatten(0, (blocks, -1)).abs().amax((1, 2)) / torch.finfo(dtype).max
        self.weight_scale_inv = nn.Parameter(scale.repeat_interleave(plain.out_features // blocks)[:, None])
        self.weight = nn.Parameter((plain.weight.detach() / self.weight_scale_inv).to(dtype), requires_grad=False)
        self.bias = plain.bias

    def numbers(self):
        return (self.weight.float() * self.weight_scale_inv).detach()

    def forward(self, input):
        return nn.functional.linear(input, self.numbers(), self.bias)


class CodedEmbedding(nn.Embedding):
    def forward(self, input):
        return 0.1 * nn.functional.embedding(input, self.weight.float())


class CodedConvolution(nn.Conv1d):
    def forward(self, input):
        return nn.functional.conv1d(input, 0.1 * self.weight.float())


def x():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("tiny", [1.0, 1e-4])
def test_codes_of_a_linear_layer_keep_their_delta(dtype, blocks, tiny):
    torch.manual_seed(0)
    coded = nn.Sequential(Scaled(nn.Linear(8, 8), dtype, blocks))
    plain = nn.Sequential(nn.Linear(8, 8))
    plain[0].load_state_dict({"weight": coded[0].numbers(), "bias": coded[0].bias})
    for model in (coded, plain):
        inject(model, LoRAConfig(r=2, alpha=2 * tiny))
        fill(trainable_parameters(model))
    torch.testing.assert_close(coded(x()), plain(x()))
    coded(x()).sum().backward()
    plain(x()).sum().backward()
    for one, other in zip(trainable_parameters(coded), trainable_parameters(plain), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    with pytest.raises(AdapterError, match='"0" can\'t be merged: its weight is stored in 8-bit floats'):
        merge(coded)
    with pytest.raises(PackError, match="8-bit floats"):
        resolve(nn.Sequential(Scaled(nn.Linear(8, 8), dtype)), Member(name="a", seed=0, lora=LoRAConfig(r=2)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_plain_storage_in_eight_bits_is_not_merged(dtype):
    model = nn.Sequential(nn.Linear(8, 8)).to(dtype)
    inject(model, LoRAConfig(r=2))
    with pytest.raises(AdapterError, match="load the base in bfloat16, or use the adapter unmerged"):
        merge(model)


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        (CodedEmbedding(8, 8), {}),
        (CodedConvolution(8, 8, 1), {}),
        (Scaled(nn.Linear(8, 8), FLOATS[0]), {"variant": "dora"}),
    ],
)
def test_other_codes_are_refused(layer, settings):
    layer.weight = nn.Parameter(layer.weight.detach().to(FLOATS[0]), requires_grad=False)
    with pytest.raises(TargetError, match="8-bit codes"):
        inject(nn.ModuleDict({"layer": layer}), LoRAConfig(r=2, target_modules="layer", **settings))


def test_codes_are_not_trained_whole_nor_read_as_a_weight_nor_quantised():
    coded = nn.Sequential(Scaled(nn.Linear(8, 8), FLOATS[0]), nn.Linear(8, 8))
    with pytest.raises(AdapterError, match="8-bit floats and can't be trained whole"):
        inject(coded, LoRAConfig(r=2, target_modules="re:1", modules_to_save=["re:0"]))
    stack = nn.Module()
    stack.experts = nn.Parameter(torch.zeros(2, 4, 4, dtype=FLOATS[0]), requires_grad=False)
    with pytest.raises(AdapterError, match='"experts" is stored in 8-bit floats and read without calling'):
        inject(stack, LoRAConfig(r=2, target_modules="experts"))
    report = quantize(nn.ModuleDict({"a": nn.Linear(8, 8).to(FLOATS[0]), "b": nn.Linear(8, 8)}), "int8")
    assert report.left_out == {"a": "its weight is stored in 8-bit floats"}
