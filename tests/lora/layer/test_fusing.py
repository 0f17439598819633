"""torch's fusions of a normalisation into an adapted layer: refused, and right once the adapter is merged."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion

from adapted_models import fill
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, eject, inject, merge, trainable_parameters, unmerge
from rounding import alike

PAIRS = {
    "convolution": (lambda: nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d, fusion.fuse_conv_bn_eval, (2, 2, 4, 4)),
    "linear": (lambda: nn.Linear(4, 3), nn.BatchNorm1d, fusion.fuse_linear_bn_eval, (5, 4)),
}


def pair(name):
    torch.manual_seed(0)
    layer, norm, fuse, shape = PAIRS[name]
    model = nn.Sequential(layer(), norm(3)).eval()
    model[1].running_var.uniform_(1, 4)
    model[1].running_mean.normal_()
    inject(model, LoRAConfig(r=2, target_modules="0"))
    fill(trainable_parameters(model))
    return model, fuse, torch.randn(shape)


@pytest.mark.parametrize("name", PAIRS)
def test_fusing_is_refused_until_the_adapter_is_merged(name):
    model, fuse, x = pair(name)
    expected = model(x)
    assert alike(copy.deepcopy(model)(x), expected)
    with pytest.raises(AdapterError, match="torch fuses a normalisation"):
        fuse(model[0], model[1])
    merge(model)
    fused = fuse(model[0], model[1])
    torch.testing.assert_close(fused(x), expected)
    with pytest.raises(AdapterError, match="was freed"):
        unmerge(fused)
    eject(fused)
    torch.testing.assert_close(fused(x), expected)
    assert {*fused.state_dict()} == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_fusing_inside_a_model_is_refused():
    model, _, _ = pair("convolution")
    with pytest.raises(AdapterError, match="torch fuses a normalisation"):
        torch.ao.quantization.fuse_modules(model, [["0", "1"]])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_layer_quantised_by_torch_after_inject_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    inject(model, LoRAConfig(r=2, target_modules="2"))
    fill(trainable_parameters(model))
    x = torch.randn(3, 4)
    quantised = torch.ao.quantization.quantize_dynamic(model)
    with pytest.raises(AdapterError, match=r"dynamic.*Linear has taken the place of an adapted layer and its hook"):
        quantised(x)
    expected = model(x)
    merge(model)
    torch.testing.assert_close(torch.ao.quantization.quantize_dynamic(model)(x), expected, rtol=0.1, atol=0.1)
