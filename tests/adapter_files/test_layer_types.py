"""Adapter files of every layer type, compared with the real PEFT on outputs and keys."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from adapted_models import fill
from layers import any_layer
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.adapter_files.peft.layer_tensors import form_of
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge
from rankwise.lora.layer_types import layer_type_of
from rounding import alike

pytestmark = [
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

LAYERS = {
    "embedding": (lambda: nn.Embedding(9, 4, padding_idx=2), torch.arange(9).view(3, 3)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same"), torch.randn(2, 4, 7, 7)),
    "conv2d of one": (lambda: nn.Conv2d(4, 6, 1), torch.randn(2, 4, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 1, 3)), torch.randn(1, 2, 5, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4), torch.randn(2, 4, 7)),
}
"""What PEFT runs rightly, and an input for each."""


def model(layer):
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[layer][0]()).double().eval()


def run(model, layer):
    x = LAYERS[layer][1]
    with torch.no_grad():
        return model(x.double() if x.is_floating_point() else x)


def keys(folder):
    from safetensors.torch import load_file

    return {key: tuple(tensor.shape) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("layer", LAYERS)
def test_peft_runs_ours(layer, scaling, tmp_path):
    adapted = model(layer)
    inject(adapted, LoRAConfig(r=3, alpha=5.0, target_modules="0", scaling=scaling))
    fill(adapter_tensors(adapted)["0"])
    expected = run(adapted, layer)
    save_adapter(adapted, tmp_path)
    theirs = PeftModel.from_pretrained(model(layer), str(tmp_path)).double()
    torch.testing.assert_close(run(theirs, layer), expected, rtol=0, atol=1e-6)
    theirs.save_pretrained(str(tmp_path / "again"))
    assert keys(tmp_path / "again") == keys(tmp_path)
    again = model(layer)
    load_adapter(again, tmp_path)
    assert again[0].lora.scale == adapted[0].lora.scale
    assert alike(run(again, layer), expected)
    assert all(map(torch.equal, adapter_tensors(again)["0"], adapter_tensors(adapted)["0"]))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_ours_runs_pefts(layer, rslora, tmp_path):
    theirs = get_peft_model(model(layer), LoraConfig(r=4, lora_alpha=3, target_modules=["0"], use_rslora=rslora))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs = theirs.double().eval()
    theirs.save_pretrained(str(tmp_path))
    loaded = model(layer)
    load_adapter(loaded, tmp_path)
    torch.testing.assert_close(run(loaded, layer), run(theirs, layer), rtol=0, atol=1e-6)
    save_adapter(loaded, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)


def test_peft_a_with_a_block_for_each_group(tmp_path):
    """PEFT never trains one, other tools may: no row crosses the groups, so it is a grouped convolution and merges."""
    theirs = get_peft_model(model("grouped"), LoraConfig(r=4, lora_alpha=3, target_modules=["0"]))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    with torch.no_grad():
        A = theirs.base_model.model[0].lora_A["default"].weight
        A[:2, 2:] = A[2:, :2] = 0
    theirs = theirs.double().eval()
    theirs.save_pretrained(str(tmp_path))
    loaded = model("grouped")
    load_adapter(loaded, tmp_path)
    torch.testing.assert_close(run(loaded, "grouped"), run(theirs, "grouped"), rtol=0, atol=1e-6)
    merge(loaded)
    torch.testing.assert_close(run(loaded, "grouped"), run(theirs, "grouped"), rtol=0, atol=1e-6)


class Reads(nn.Module):
    """As Mamba's: the kernel of a grouped convolution is read without a call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, groups=4)

    def forward(self, x):
        return nn.functional.conv1d(x, self.conv.weight, self.conv.bias, groups=4)


def test_peft_a_that_crosses_the_groups_cannot_act_on_a_weight(tmp_path):
    theirs = get_peft_model(nn.Sequential(Reads()), LoraConfig(r=4, target_modules=["0.conv"]))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(str(tmp_path))
    loaded, x = nn.Sequential(Reads()), torch.randn(2, 4, 7)
    load_adapter(loaded, tmp_path)
    with pytest.raises(AdapterError, match="where its weight is read without a call, leave the layer out"):
        loaded(x)
    # PEFT's says nothing and does nothing.
    torch.testing.assert_close(theirs(x), theirs.unload()(x))


@given(any_layer, st.integers(1, 3))
@settings(max_examples=60)
def test_forms_go_round(drawn, r):
    layer = drawn[0]
    row = layer_type_of(layer)
    form = form_of(row)
    inject(layer, LoRAConfig(r=r, target_modules=lambda *_: True))
    A, B = adapter_tensors(layer)[""]
    fill((A, B))
    written = form.write(row, layer, A, B)
    assert tuple(tensor.shape for tensor in written) == form.shapes(row, layer, written[0].shape[0])
    assert all(map(torch.equal, form.read(row, layer, *written), (A, B)))


def test_a_file_without_its_model_has_pefts_shapes(tmp_path):
    adapted = model("grouped")
    inject(adapted, LoRAConfig(r=3, target_modules="0"))
    config, tensors = read_adapter(save_adapter(adapted, tmp_path))
    assert (config.r, config.rank_pattern, config.scale(6, config.alpha_pattern["0"])) == (3, {"0": 6}, 32.0 / 3)
    assert [tuple(tensor.shape) for tensor in tensors["0"]] == [(6, 4, 3, 3), (6, 3, 1, 1)]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_pefts_inits_that_change_the_base_are_one_ordinary_adapter(init, rslora, tmp_path):
    """PEFT starts from B A = a part of W that leaves the base; on request it saves the change since, with 2 r."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 5))
    base = copy.deepcopy(layer)
    settings = LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=init, use_rslora=rslora)
    theirs = get_peft_model(layer, settings)
    theirs.save_pretrained(str(tmp_path / "start"))
    # As it is, the file stands over what PEFT takes off the base; at its start it is the base.
    start, x = copy.deepcopy(base), torch.randn(4, 6)
    load_adapter(start, tmp_path / "start")
    torch.testing.assert_close(start(x), base(x), rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(str(tmp_path), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    x = torch.randn(4, 6)
    model = copy.deepcopy(base)
    load_adapter(model, tmp_path)
    assert adapter_tensors(model)["0"][0].shape == (4, 6)
    torch.testing.assert_close(model(x), theirs(x), rtol=0, atol=1e-6)
    assert torch.equal(model[0].weight, base[0].weight)
