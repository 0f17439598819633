"""PEFT's settings taken over: what they adapt here is what PEFT adapts."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from adapted_models import MODELS, llama, mlp, theirs
from rankwise.errors import AdapterFileError, ConfigError
from rankwise.lora import LoRAConfig, inject

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SETTINGS = {
    "names": {"target_modules": ["q_proj", "v_proj"]},
    "a path": {"target_modules": ["model.layers.1.mlp.up_proj", "k_proj"]},
    "an expression": {"target_modules": r".*layers\.1\..*_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "a layer by pattern": {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    "ranks": {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 5, r"^model\.layers\.1\.self.*": 3}},
    "alphas": {"target_modules": ["q_proj"], "alpha_pattern": {r"layers\.1\..*": 3}, "use_rslora": True},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_modules_ranks_and_scales(settings):
    config = LoraConfig(r=4, lora_alpha=10, lora_dropout=0.25, **settings)
    taken_over = LoRAConfig.from_peft(config)  # first: peft writes into its configuration
    wrapped = get_peft_model(llama(), config)
    wanted = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }
    model = llama()
    report = inject(model, taken_over)
    assert {target.name: (target.r, target.scale) for target in report.adapted} == wanted
    assert model.get_submodule(report.adapted[0].name).lora.configs["default"].dropout == 0.25


@pytest.mark.parametrize("make", [MODELS["bert"], MODELS["gpt2"]], ids=["bert", "gpt2"])
def test_all_linear_of_other_models(make):
    config = LoraConfig(target_modules="all-linear", fan_in_fan_out=make is MODELS["gpt2"])
    taken_over = LoRAConfig.from_peft(config)
    wrapped = get_peft_model(make(), config)
    wanted = [name for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)]
    report = inject(make(), taken_over)
    assert {f"base_model.model.{target.name}" for target in report.adapted} == {*wanted}


def test_every_source_gives_the_same(tmp_path):
    config = LoraConfig(r=3, target_modules=["up", "down"], use_dora=True, bias="lora_only", task_type="CAUSAL_LM")
    settings = {"r": 3, "lora_alpha": 8, "use_dora": True, "bias": "lora_only"}
    theirs(mlp(), target_modules=["up", "down"], **settings).save_pretrained(str(tmp_path))
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    found = [
        LoRAConfig.from_peft(source)
        for source in (config, config.to_dict(), fields, tmp_path, str(tmp_path / "adapter_config.json"))
    ]
    for one in found:
        assert (one.r, one.alpha, one.variant, one.bias) == (3, 8.0, "dora", "lora_only")
        assert one.target_modules == ("down", "up")
    assert json.loads(json.dumps(dict(found[0].extra)))["task_type"] == "CAUSAL_LM"


def test_peft_defaults_and_gaussian():
    config = LoRAConfig.from_peft({"target_modules": "all-linear", "init_lora_weights": "gaussian"})
    assert (config.r, config.alpha, config.init, config.target_modules) == (8, 8.0, "gaussian", ("all-linear",))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        return torch.einsum("bi,eoi->beo", x, self.kernel)


def test_target_parameters_are_targets():
    config = LoraConfig(r=2, target_modules=[], target_parameters=["0.kernel"])
    assert inject(nn.Sequential(Experts()), LoRAConfig.from_peft(config)).adapted[0].name == "0.kernel"


def test_unknown_fields_are_kept_and_those_that_change_the_maths_refused():
    fields = {"target_modules": ["up"], "brand_new": 1}
    with pytest.warns(UserWarning, match="brand_new"):
        assert LoRAConfig.from_peft(fields).extra == {"brand_new": 1}
    with pytest.raises(AdapterFileError, match=r"sets use_brand = true.*changes the adapter's function"):
        LoRAConfig.from_peft({"target_modules": ["up"], "use_brand": True})
    with pytest.warns(UserWarning, match="use_brand"):
        assert LoRAConfig.from_peft({"target_modules": ["up"], "use_brand": True}, strict=False).r == 8


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"lora_bias": True}, ConfigError, "sets lora_bias = true, a bias of B, which adds what a bias of the layer"),
        ({"init_lora_weights": "mica"}, ConfigError, "sets init_lora_weights"),
        ({"init_lora_weights": "pissa_niter_4"}, ConfigError, "which isn't known"),
        ({"init_lora_weights": False}, ConfigError, "init_lora_weights = false"),
        ({"peft_type": "IA3"}, AdapterFileError, "peft_type"),
        ({"target_modules": None}, ConfigError, "no target_modules; peft then chooses by"),
        ({"r": "8"}, AdapterFileError, "a whole number"),
        ({"lora_dropout": 1.5}, ConfigError, "can't be used: dropout is 1.5"),
    ],
)
def test_what_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        LoRAConfig.from_peft({"target_modules": ["up"], **fields})


def test_what_is_no_source():
    with pytest.raises(ConfigError, match="from_peft got a int; a LoraConfig of peft"):
        LoRAConfig.from_peft(3)
    with pytest.raises(AdapterFileError, match=r"has no adapter_config.json"):
        LoRAConfig.from_peft("nowhere")
