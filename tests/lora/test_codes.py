"""Weights that hold codes: 8-bit floats, plain or turned into numbers by their class."""

import pytest
import torch
from torch import nn

from adapted_models import fill
from rankwise import quantize
from rankwise.errors import AdapterError, PackError, TargetError
from rankwise.lora import LoRAConfig, inject, merge, trainable_parameters, unmerge
from rankwise.pack.member import Member
from rankwise.pack.resolved import resolve
from rounding import alike

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
    with pytest.raises(AdapterError, match="8-bit floats and can't be trained in full"):
        inject(coded, LoRAConfig(r=2, target_modules="re:1", modules_to_save=["re:0"]))
    stack = nn.Module()
    stack.experts = nn.Parameter(torch.zeros(2, 4, 4, dtype=FLOATS[0]), requires_grad=False)
    with pytest.raises(AdapterError, match='"experts" is stored in 8-bit floats and read without calling'):
        inject(stack, LoRAConfig(r=2, target_modules="experts"))
    report = quantize(nn.ModuleDict({"a": nn.Linear(8, 8).to(FLOATS[0]), "b": nn.Linear(8, 8)}), "int8")
    assert report.left_out == {"a": "its weight is stored in 8-bit floats"}


def test_a_layer_whose_weight_lies_under_another_name_is_left_out_or_refused():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    codes = model[0].weight.detach().round().to(torch.int8)
    del model[0].weight  # as compressed-tensors does
    model[0].register_parameter("weight_packed", nn.Parameter(codes, requires_grad=False))
    with pytest.raises(TargetError, match="it has no weight but bias, weight_packed"):
        inject(model, LoRAConfig(r=2, target_modules="0"))
    report = inject(model, LoRAConfig(r=2))
    assert [target.name for target in report.adapted] == ["1"]
    assert "load it without compression" in str(report)


@pytest.mark.filterwarnings("ignore")
def test_a_base_quantised_after_inject_is_merged_into_plain_weights_only():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(8, 8))
    inject(model, LoRAConfig(r=2))
    fill(trainable_parameters(model))
    quantize_(model, Int8WeightOnlyConfig())
    outputs = model(x())
    with pytest.raises(AdapterError, match="is quantised, and most of delta would be lost"):
        merge(model)
    merge(model, dequantize=True)
    torch.testing.assert_close(model(x()), outputs)
    unmerge(model)
    assert alike(model(x()), outputs)


class Halves(torch.Tensor):
    """Codes of which the numbers are halves, of a class that no table lists."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=codes.dtype)

    def __init__(self, codes):
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        return func(*(arg.codes / 2 if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("change", [Halves, torch.Tensor.to_sparse_csr])
def test_numbers_of_another_class_or_layout_are_adapted_but_not_written_to(change):
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    model[0].weight = nn.Parameter(change(model[0].weight.detach()), requires_grad=False)
    inject(model, LoRAConfig(r=2))
    model(x()).sum().backward()
    with pytest.raises(AdapterError, match="its weight is sparse, or of a class that computes in its own way"):
        merge(model)
    with pytest.raises(AdapterError, match="can't be trained in full"):
        inject(
            nn.Sequential(*model, nn.Linear(8, 2)),
            LoRAConfig(r=2, target_modules="re:1", modules_to_save=["re:0"]),
            "whole",
        )


def test_storing_a_base_in_eight_bits_leaves_the_adapter_as_it_is():
    model = nn.Sequential(nn.Linear(8, 8))
    inject(model, LoRAConfig(r=2))
    before = [p.detach().clone() for p in trainable_parameters(model)]
    model.to(FLOATS[0])  # between forwards, as diffusers' layerwise casting
    assert model[0].weight.dtype == FLOATS[0]
    assert all(map(torch.equal, trainable_parameters(model), before))


def test_a_report_says_where_a_small_delta_is_rounded_away():
    class Own(nn.Linear):
        def forward(self, input):
            return nn.functional.linear(input, self.weight)

    assert "rounded to bfloat16" in str(inject(nn.Sequential(Own(8, 8).bfloat16()), LoRAConfig(r=2)))
    assert "rounded" not in str(inject(nn.Sequential(Own(8, 8)), LoRAConfig(r=2)))
