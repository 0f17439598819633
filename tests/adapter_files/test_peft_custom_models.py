"""Settings of peft's own tests of custom models: through `LoRAConfig.from_peft` each is peft's function or is refused.

The models are written here; only which layers they have, and the settings, are those of peft's `TEST_CASES`.
"""

import copy

import peft
import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapter_files import load_adapter
from rankwise.errors import RankwiseError
from rankwise.lora import LoRAConfig, activate, adapter_tensors, inject
from rounding import alike

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*groups > 1. Merging is not supported"),
    pytest.mark.filterwarnings("ignore:.*adds delta of an attention's output projection twice"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore:.*fields that are not known here"),
]


class Flow(nn.Module):
    """Named layers, one after another; integers, or numbers of any shape, go in."""

    def __init__(self, example, **layers):
        super().__init__()
        self.example = example
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        for name, layer in self.named_children():
            x = layer(x, x, x, need_weights=False)[0] if name == "mha" else layer(x)
        return x


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def two(**more):
    return {"lin0": nn.Linear(10, 20), "relu": nn.ReLU(), "lin1": nn.Linear(20, 2)} | more


MODELS = {
    "mlp": lambda: Flow(numbers(5, 10), **two()),
    "embedding": lambda: Flow(
        torch.arange(12).view(3, 4),
        emb=nn.Embedding(100, 5),
        conv1d=Conv1D(4, 5),
        flat=nn.Flatten(),
        lin0=nn.Linear(16, 2),
    ),
    "conv1d": lambda: Flow(numbers(2, 3, 9), conv1d=nn.Conv1d(3, 6, 2), flat=nn.Flatten(), lin0=nn.Linear(48, 2)),
    "conv2d": lambda: Flow(numbers(2, 3, 5, 5), conv2d=nn.Conv2d(3, 8, 3), flat=nn.Flatten(), lin0=nn.Linear(72, 2)),
    "groups": lambda: Flow(
        numbers(2, 4, 5, 5), conv2d=nn.Conv2d(4, 8, 3, groups=2), flat=nn.Flatten(), lin0=nn.Linear(72, 2)
    ),
    "more groups": lambda: Flow(
        numbers(2, 8, 5, 5), conv2d=nn.Conv2d(8, 16, 3, groups=4), flat=nn.Flatten(), lin0=nn.Linear(144, 2)
    ),
    "conv3d": lambda: Flow(
        numbers(2, 3, 4, 4, 4), conv3d=nn.Conv3d(3, 4, 2), flat=nn.Flatten(), lin0=nn.Linear(108, 2)
    ),
    "conv3d of 1": lambda: Flow(
        numbers(2, 3, 2, 2, 2), conv3d=nn.Conv3d(3, 4, 1), flat=nn.Flatten(), lin0=nn.Linear(32, 2)
    ),
    "attention": lambda: Flow(
        numbers(2, 3, 8), mha=nn.MultiheadAttention(8, 2, batch_first=True), lin0=nn.Linear(8, 2)
    ),
}

DORA = {"use_dora": True}
SAME = [
    *[("mlp", {"target_modules": targets}) for targets in ("lin0", ["lin0"], ["lin1"], ["lin0", "lin1"])],
    ("mlp", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("mlp", {"target_modules": ["lin0"], "lora_alpha": 4, "lora_dropout": 0.1}),
    *[("mlp", {"target_modules": targets} | DORA) for targets in (["lin0"], ["lin0", "lin1"])],
    ("mlp", {"target_modules": "lin1", "lora_alpha": 32} | DORA),
    ("mlp", {"target_modules": ["lin0"], "target_parameters": ["lin1.weight"]}),
    ("mlp", {"target_parameters": ["lin0.weight"]}),
    *[
        ("embedding", {"target_modules": targets} | dora)
        for targets in (["conv1d"], ["emb"], ["emb", "conv1d"])
        for dora in ({}, DORA)
    ],
    ("embedding", {"target_modules": ["conv1d"], "trainable_token_indices": {"emb": [0, 10]}}),
    *[("conv1d", {"target_modules": ["conv1d"]} | dora) for dora in ({}, DORA)],
    *[("conv2d", {"target_modules": t} | dora) for t in (["conv2d"], ["conv2d", "lin0"]) for dora in ({}, DORA)],
    *[(groups, {"target_modules": ["conv2d"]}) for groups in ("groups", "more groups")],
    *[("conv3d", {"target_modules": t} | dora) for t in (["conv3d"], ["conv3d", "lin0"]) for dora in ({}, DORA)],
    *[("conv3d of 1", {"target_modules": ["conv3d"]} | dora) for dora in ({}, DORA)],
]
"""Model, settings."""

REFUSED = [
    ("mlp", {"target_modules": ["lin0"], "kasa_config": {"beta": 1e-4}, "r": 4}, "kasa_config"),
    ("mlp", {"target_modules": ["lin0"], "init_lora_weights": "mica", "r": 4}, "init_lora_weights"),
    ("mlp", {"target_modules": ["lin0"], "velora_config": {"num_groups": 2, "init_type": "random"}}, "velora_config"),
    ("mlp", {"target_modules": ["lin0"], "velora_config": {"init_type": "batch_average"}}, "velora_config"),
    ("mlp", {"target_modules": ["lin0"], "velora_config": {"init_type": "batch_average_once"}}, "velora_config"),
    ("mlp", {"target_modules": ["lin0"], "monteclora_config": {"num_samples": 2}}, "monteclora_config"),
    *[(kind, {"target_modules": [name], "lora_bias": True, "lora_alpha": 32}, "lora_bias")
      for kind, name in (("mlp", "lin0"), ("conv2d", "conv2d"), ("conv3d", "conv3d"))],
    ("mlp", {"target_modules": ["lin0", "lin1"], "lora_bias": True, "lora_alpha": 32}, "lora_bias"),
]  # fmt: skip


def made(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


@pytest.mark.parametrize(("kind", "settings"), SAME)
def test_the_function_is_pefts(kind, settings, tmp_path):
    torch.manual_seed(0)
    theirs = peft.get_peft_model(made(kind), LoraConfig(init_lora_weights=False, **copy.deepcopy(settings))).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "lora" not in name:
                parameter.add_(0.1)
    theirs.save_pretrained(tmp_path)
    fresh, loaded = made(kind), made(kind)
    before = fresh(fresh.example)
    inject(fresh, LoRAConfig.from_peft({**settings, "target_modules": settings.get("target_modules")}))
    assert alike(fresh(fresh.example), before)
    load_adapter(loaded, tmp_path)
    torch.testing.assert_close(loaded(loaded.example), theirs(loaded.example), rtol=1e-5, atol=1e-5)
    assert adapter_tensors(fresh).keys() == adapter_tensors(loaded).keys()
    if kind not in ("groups", "more groups"):  # where ours shares one A among the groups
        count = [sum(p.numel() for p in it.parameters() if p.requires_grad) for it in (fresh, theirs)]
        assert count[0] == count[1]


@pytest.mark.parametrize(("kind", "settings", "named"), REFUSED)
def test_what_is_no_lora_of_ours_is_refused_by_name(kind, settings, named):
    with pytest.raises(RankwiseError, match=named):
        inject(made(kind), LoRAConfig.from_peft(settings))


@pytest.mark.parametrize("targets", [["mha"], ["mha", "lin0"]])
def test_attention_is_pefts_but_for_the_output_projection(targets, tmp_path):
    """peft adds its delta twice; doubling its B gives peft's outputs (docs/limits.md)."""
    torch.manual_seed(0)
    settings = LoraConfig(target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(made("attention"), settings).eval()
    theirs.save_pretrained(tmp_path)
    model, fresh = made("attention"), made("attention")
    load_adapter(model, tmp_path)
    inject(fresh, LoRAConfig.from_peft({"target_modules": targets}))
    assert adapter_tensors(fresh).keys() == adapter_tensors(model).keys()
    adapter_tensors(model)["mha.out_proj"][1].data.mul_(2)
    torch.testing.assert_close(model(model.example), theirs(model.example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["groups", "more groups"])
def test_dora_of_pefts_grouped_convolutions_is_refused(kind, tmp_path):
    settings = {"target_modules": ["conv2d"], "use_dora": True}
    torch.manual_seed(0)
    theirs = peft.get_peft_model(made(kind), LoraConfig(init_lora_weights=False, **settings)).eval()
    theirs.save_pretrained(tmp_path)
    model = made(kind)
    inject(copy.deepcopy(model), LoRAConfig.from_peft(settings))
    with pytest.raises(RankwiseError, match="reads all"):  # peft's A has no groups, so W + delta can't be formed
        load_adapter(model, tmp_path) and model(model.example)


TOGETHER = [
    ("mlp", {"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    ("mlp", {"target_modules": ["lin0"]}, {"target_modules": ["lin1"]}),
    ("mlp", {"target_parameters": ["lin0.weight"]}, {"target_parameters": ["lin0.weight"]}),
]
"""Model, settings of two adapters that act together: of those that peft tests, what its version 0.21.2 takes."""


@pytest.mark.parametrize(("kind", "one", "other"), TOGETHER)
def test_two_adapters_together_are_pefts(kind, one, other, tmp_path):
    torch.manual_seed(0)
    theirs = peft.get_peft_model(made(kind), LoraConfig(init_lora_weights=False, **one), "one")
    theirs.add_adapter("other", LoraConfig(init_lora_weights=False, **other))
    theirs.base_model.set_adapter(["one", "other"])
    theirs.eval().save_pretrained(tmp_path)
    ours = made(kind)
    for name in ("one", "other"):
        load_adapter(ours, tmp_path / name, name)
    activate(ours, "one", "other")
    torch.testing.assert_close(ours(ours.example), theirs(ours.example), rtol=1e-5, atol=1e-5)
