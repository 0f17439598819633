"""Files of attentions: PEFT has one r and one alpha for in_proj and out_proj, under the attention's name."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.lora import LoRAConfig, adapter_tensors, inject
from rankwise.lora.adapter import adapted_layers

# That PEFT's delta of out_proj counts twice is what test_attention.py is about.
pytestmark = pytest.mark.filterwarnings("ignore:.*here it counts once")


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "l": nn.Linear(4, 4)})


def keys(folder):
    return {key: tuple(tensor.shape) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}


def scales(adapted):
    return {path: lora.scale["default"] for path, (_, lora) in adapted_layers(adapted).items()}


def pefts(folder, **settings):
    theirs = get_peft_model(model(), LoraConfig(r=2, lora_alpha=4, target_modules=["a", "l"], **settings))
    fill(p for name, p in theirs.named_parameters() if p.requires_grad)
    theirs.save_pretrained(str(folder))
    return {
        name: module.scaling["default"]
        for name, module in theirs.base_model.model.named_modules()
        if hasattr(module, "scaling")
    }


def test_one_r_and_alpha_for_both(tmp_path):
    theirs = pefts(tmp_path, rank_pattern={"a": 3}, alpha_pattern={"a": 16})
    ours = model()
    load_adapter(ours, tmp_path)
    assert scales(ours) == {
        "a.in_proj_weight": theirs["a"],
        "a.out_proj": theirs["a.base_layer.out_proj"],
        "l": theirs["l"],
    }
    save_adapter(ours, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)
    assert {*json.loads((tmp_path / "again" / "adapter_config.json").read_text())["target_modules"]} == {"a", "l"}
    PeftModel.from_pretrained(model(), str(tmp_path / "again"))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_the_bias_of_out_proj(bias, tmp_path):
    pefts(tmp_path, bias=bias)
    ours = model()
    load_adapter(ours, tmp_path)
    save_adapter(ours, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)
    there = load_file(tmp_path / "adapter_model.safetensors")
    here = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(there[key], here[key]) for key in there)


@pytest.mark.parametrize("targets", [["in_proj_weight"], ["out_proj"]])
def test_one_of_both_alone(targets, tmp_path):
    """PEFT leaves the other at zero."""
    ours = model()
    inject(ours, LoRAConfig(r=2, alpha=4.0, target_modules=targets))
    fill(tensor for pair in adapter_tensors(ours).values() for tensor in pair)
    save_adapter(ours, tmp_path)
    again = model()
    load_adapter(again, tmp_path)
    assert scales(again) == scales(ours)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        theirs = PeftModel.from_pretrained(model(), str(tmp_path)).base_model.model
    pair = theirs["a"] if targets == ["in_proj_weight"] else theirs["a"].base_layer.out_proj
    other = theirs["a"].base_layer.out_proj if targets == ["in_proj_weight"] else theirs["a"]
    A, B = next(iter(adapter_tensors(ours).values()))
    assert torch.equal(pair.lora_A["default"].weight, A)
    assert torch.equal(pair.lora_B["default"].weight, B)
    assert not other.lora_B["default"].weight.any()


def test_ranks_that_differ_come_back_here(tmp_path):
    ours = model()
    inject(ours, LoRAConfig(r=2, target_modules="a", rank_pattern={"out_proj": 3}, alpha_pattern={"out_proj": 5.0}))
    save_adapter(ours, tmp_path)
    again = model()
    load_adapter(again, tmp_path)
    assert scales(again) == scales(ours)
