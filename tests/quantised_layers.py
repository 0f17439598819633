"""Quantised Linear layers of every kind, and the same layers with plain weights, by the libraries' own functions."""

import copy
import warnings

import bitsandbytes as bnb
import torch
from torch import nn


def int8(layer):
    new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def four_bit(kind):
    def make(layer):
        new = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, quant_type=kind)
        new.load_state_dict(layer.state_dict())
        return new.to("cpu")

    return make


def torchao(name):
    def make(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao import quantization

        new = copy.deepcopy(layer)
        quantization.quantize_(new, getattr(quantization, name)())
        return new

    return make


KINDS = {
    "int8": int8,
    "nf4": four_bit("nf4"),
    "fp4": four_bit("fp4"),
    "torchao int8": torchao("Int8WeightOnlyConfig"),
    "torchao intx": torchao("IntxWeightOnlyConfig"),
    "torchao float8": torchao("Float8WeightOnlyConfig"),
}
"""Name -> Linear -> the same, quantised."""


def plain(layer):
    """The layer with the numbers that its quantised weight stands for."""
    if isinstance(layer, bnb.nn.Linear8bitLt):
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        weight = layer.weight.data.float() * scales.view(-1, 1) / 127
    elif isinstance(layer, bnb.nn.Linear4bit):
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        weight = layer.weight.dequantize()
    new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    with torch.no_grad():
        new.weight.copy_(weight)
        if layer.bias is not None:
            new.bias.copy_(layer.bias)
    return new


class Net(nn.Module):
    """Two layers, so that gradients must pass through the second to reach the first."""

    def __init__(self, kind=None, bias=True):
        super().__init__()
        torch.manual_seed(0)
        make = KINDS[kind] if kind else (lambda layer: layer)
        up, down = nn.Linear(64, 128, bias), nn.Linear(128, 32, bias)  # drawn first: making a layer draws numbers too
        self.up = make(up)
        self.norm = nn.LayerNorm(128)
        self.down = make(down)

    def forward(self, x):
        return self.down(self.norm(self.up(x)).relu())

    def dequantised(self):
        new = Net()
        new.norm = copy.deepcopy(self.norm)
        new.up, new.down = plain(self.up), plain(self.down)
        return new.train(self.training)


def inputs():
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
