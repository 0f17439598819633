"""`modules_to_save` and `bias` in files, both ways with the real PEFT."""

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from adapted_models import fill
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, adapter_tensors, inject
from rankwise.lora.trained_modules import replacement_tensors

# PEFT calls what transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.down = nn.Linear(8, 4, bias=False)
        self.head = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        return self.head(self.down(self.norm(self.up(x)).relu()))


def net():
    torch.manual_seed(0)
    return Net().eval()


def classifier():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return BertForSequenceClassification(config).eval()


def outputs(model):
    generator = torch.Generator().manual_seed(3)
    inner = model.base_model.model if isinstance(model, PeftModel) else model
    with torch.no_grad():
        if isinstance(inner, Net):
            return model(torch.randn(5, 6, generator=generator))
        return model(torch.randint(20, (2, 7), generator=generator))[0]


def keys(folder):
    return set(load_file(Path(folder) / "adapter_model.safetensors"))


CASES = [
    (net, ["up"], {"bias": "all"}),
    (net, ["up", "down"], {"bias": "lora_only"}),
    (net, ["up"], {"modules_to_save": ["head"]}),
    (net, ["up"], {"modules_to_save": ["head", "norm"]}),
    (net, ["up", "down"], {"modules_to_save": ["down"], "bias": "lora_only"}),
    (classifier, ["query", "value"], {"modules_to_save": ["classifier"]}),
    (classifier, ["query"], {"bias": "all"}),
]


@pytest.mark.parametrize(("make", "targets", "settings"), CASES)
def test_ours_runs_pefts(make, targets, settings, tmp_path):
    wrapped = get_peft_model(make(), LoraConfig(r=2, target_modules=targets, **settings)).eval()
    fill(parameter for parameter in wrapped.parameters() if parameter.requires_grad)
    wrapped.save_pretrained(str(tmp_path))
    model = make()
    base = copy.deepcopy(model.state_dict())
    load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model), outputs(wrapped), rtol=0, atol=1e-6)
    save_adapter(model, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)
    assert all(torch.equal(model.state_dict()[key], base[key]) for key in base)


@pytest.mark.parametrize(("make", "targets", "settings"), CASES)
def test_peft_runs_ours(make, targets, settings, tmp_path):
    model = make()
    inject(model, LoRAConfig(r=2, target_modules=targets, **settings))
    if "down" in settings.get("modules_to_save", []):
        assert set(adapter_tensors(model)) == {"up"}
    fill(parameter for parameter in model.parameters() if parameter.requires_grad)
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    torch.testing.assert_close(outputs(model), outputs(loaded), rtol=0, atol=1e-6)
    loaded.save_pretrained(str(tmp_path / "again"))
    assert keys(tmp_path / "again") == keys(tmp_path)


def test_bias_and_modules_to_save_together(tmp_path):
    """PEFT then writes copies of its wrappers' biases too, under keys that its own loading passes over."""
    settings = {"modules_to_save": ["head", "norm"], "bias": "all", "target_modules": ["up"]}
    wrapped = get_peft_model(net(), LoraConfig(r=2, **settings)).eval()
    fill(parameter for parameter in wrapped.parameters() if parameter.requires_grad)
    wrapped.save_pretrained(str(tmp_path))
    model = net()
    load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model), outputs(wrapped), rtol=0, atol=1e-6)
    save_adapter(model, tmp_path / "again")
    plain = {key for key in keys(tmp_path) if "modules_to_save" not in key and "original_module" not in key}
    assert keys(tmp_path / "again") == plain


@pytest.fixture
def saved(tmp_path):
    model = net()
    inject(model, LoRAConfig(r=2, target_modules="up", modules_to_save="head", bias="all"))
    fill(parameter for parameter in model.parameters() if parameter.requires_grad)
    return save_adapter(model, tmp_path)


HEAD = "base_model.model.head.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(HEAD), f'has no tensor "{HEAD}", which modules_to_save or bias announces'),
        (lambda t: t.pop("base_model.model.norm.bias"), 'has no tensor "base_model.model.norm.bias"'),
        (lambda t: t.pop("base_model.model.up.base_layer.bias"), 'has no tensor "base_model.model.up.base_layer.bias"'),
        (
            lambda t: t.update({HEAD: torch.ones(7, 4)}),
            f'"{HEAD}" has shape (7, 4); the model has (3, 4) there. Has the model another number of classes',
        ),
        (lambda t: t.update({HEAD: torch.ones(3, 4, dtype=torch.int64)}), "is of type torch.int64"),
        (lambda t: t.update({"base_model.model.head.9.bias": torch.ones(3)}), 'head.9.bias", which the model lacks'),
        (
            lambda t: t.update({"base_model.model.norm.weight": torch.ones(8)}),
            'tensor "base_model.model.norm.weight" of',
        ),
    ],
)
def test_what_does_not_fit_is_an_error_or_listed(saved, change, message):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    model = net()
    before = list(model.state_dict())
    with pytest.raises(AdapterFileError, match=re.escape(message)):
        load_adapter(model, saved)
    assert list(model.state_dict()) == before
    report = load_adapter(model, saved, strict=False)
    assert any(message in line for line in report.findings)
    assert replacement_tensors(model, "default")
    outputs(model)


def test_without_a_model_they_cannot_be_used(saved):
    with pytest.raises(AdapterFileError, match="has fully trained parameters"):
        read_adapter(saved)
    assert list(read_adapter(saved, strict=False)[1]) == ["up"]
