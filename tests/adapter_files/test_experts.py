"""Models of transformers whose experts are fused into parameters: files both ways with the real PEFT."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from zoo.transformers_models import MODELS, make

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.lora import LoRAConfig, adapter_tensors, inject
from rounding import alike

FAST = ["mixtral", "qwen2_moe", "gpt_oss", "jetmoe", "deepseek_v2"]
"""Ways of PEFT's and of the models: names that PEFT translates, experts (in, out), biases of experts, other names of
parameters, and shared experts beside the fused ones."""

SLOW = [
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "deepseek_v3",
    "ernie4_5_moe",
    "dots1",
    "minimax",
    "qwen3_next",
    "nemotron_h",
]

NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]

CLOSE = 1e-6
"""Of the largest output, in float32."""


def base_and_batch(name):
    torch.manual_seed(0)
    return make(name).eval(), MODELS[name].inputs()


def stacks_of(model):
    return [name for name, p in model.named_parameters() if p.ndim == 3 and "experts" in name]


def run(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def keys(folder):
    return {key: tuple(tensor.shape) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE * float(theirs.abs().max()))


@pytest.mark.filterwarnings("ignore")  # of transformers and peft; what is compared are outputs and keys
@pytest.mark.parametrize("also", [[], ["all-linear"]], ids=["experts", "all linear too"])
@pytest.mark.parametrize("name", NAMES)
def test_peft_runs_ours(name, also, tmp_path):
    if name == "nemotron_h" and also:
        pytest.skip("peft refuses out_proj of Mamba models")
    base, batch = base_and_batch(name)
    ours = copy.deepcopy(base)
    inject(ours, LoRAConfig(r=2, alpha=3.0, target_modules=[*also, *stacks_of(base)]))
    fill(tensor for pair in adapter_tensors(ours).values() for tensor in pair)
    expected = run(ours, batch)
    assert not torch.allclose(expected, run(base, batch))
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    assert_close(expected, run(theirs, batch))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert keys(tmp_path / "theirs") == keys(tmp_path)
    load_adapter(base, tmp_path)
    assert alike(run(base, batch), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["experts", "all-linear"])
@pytest.mark.parametrize("name", NAMES)
def test_ours_runs_pefts(name, way, tmp_path):
    """PEFT turns "all-linear" of many of these models into the experts' parameters and the router's."""
    if name == "nemotron_h" and way == "all-linear":
        pytest.skip("peft refuses out_proj of Mamba models")
    base, batch = base_and_batch(name)
    given = {"target_modules": way} if way == "all-linear" else {"target_modules": []}
    parameters = stacks_of(base) if way == "experts" else None
    theirs = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, lora_alpha=3, target_parameters=parameters, **given)
    ).eval()
    fill(p for key, p in theirs.named_parameters() if "lora_" in key)
    theirs.save_pretrained(str(tmp_path))
    load_adapter(base, tmp_path)
    assert_close(run(base, batch), run(theirs, batch))
    save_adapter(base, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_layers_whose_names_peft_takes_for_the_experts(tmp_path):
    """PEFT means the fused experts by `down_proj`, whatever the path; a layer of that name goes by its weight."""
    base, batch = base_and_batch("qwen2_moe")
    ours = copy.deepcopy(base)
    shared = "model.layers.0.mlp.shared_expert.down_proj"
    inject(ours, LoRAConfig(r=2, target_modules=[shared, "q_proj"]))
    fill(tensor for pair in adapter_tensors(ours).values() for tensor in pair)
    save_adapter(ours, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["target_parameters"] == [f"{shared}.weight"]
    assert shared not in fields["target_modules"]
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    assert_close(run(ours, batch), run(theirs, batch))
