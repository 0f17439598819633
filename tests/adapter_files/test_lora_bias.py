"""Files with `lora_bias`, which PEFT writes: s b is added to the layer's own bias."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from adapted_models import fill
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import disabled, merge, unmerge
from rounding import alike

# peft takes the biases that it saves for shards.
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape")

MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 4), ["0", "2"]),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()), torch.randn(2, 2, 4), ["0"]),
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def saved(name, folder, **settings):
    config = LoraConfig(r=2, lora_alpha=5, target_modules=MODELS[name][2], lora_bias=True, **settings)
    theirs = get_peft_model(made(name), config)
    fill(p for key, p in theirs.named_parameters() if p.requires_grad)
    theirs.save_pretrained(str(folder))
    return theirs.eval()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"bias": "lora_only"}])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_outputs(name, settings, tmp_path):
    theirs, ours, x = saved(name, tmp_path, **settings), made(name), MODELS[name][1]
    with torch.no_grad():
        base = ours(x)
        load_adapter(ours, tmp_path)
        out = ours(x)
        torch.testing.assert_close(out, theirs(x), rtol=0, atol=1e-6)
        with disabled(ours):
            assert alike(ours(x), base)
        save_adapter(ours, tmp_path / "again")
        again = PeftModel.from_pretrained(made(name), str(tmp_path / "again")).eval()
        torch.testing.assert_close(again(x), out, rtol=0, atol=1e-6)
        merge(ours)
        torch.testing.assert_close(ours(x), out, rtol=0, atol=1e-5)
        unmerge(ours)
        assert alike(ours(x), out)


def test_a_layer_without_a_bias_is_refused(tmp_path):
    saved("linear", tmp_path)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    before = list(model.state_dict())
    with pytest.raises(AdapterFileError, match=r'"base_model.model.0.lora_B.bias" has shape \(6,\), and "0" no bias'):
        load_adapter(model, tmp_path)
    assert list(model.state_dict()) == before


def test_a_bias_that_is_missing_or_not_announced(tmp_path):
    saved("linear", tmp_path)
    with pytest.raises(AdapterFileError, match="biases of B"):
        read_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: t for key, t in tensors.items() if key != "base_model.model.2.lora_B.bias"}, path)
    with pytest.raises(AdapterFileError, match=r'has no "base_model.model.2.lora_B.bias"; with lora_bias every module'):
        load_adapter(made("linear"), tmp_path)
    save_file(tensors, path)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace('"lora_bias": true', '"lora_bias": false'))
    with pytest.raises(AdapterFileError, match="the settings don't say lora_bias"):
        load_adapter(made("linear"), tmp_path)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_layers_with_one_weight_and_one_adapter_have_biases_of_their_own(tmp_path):
    def model():
        torch.manual_seed(0)
        return Tied().eval()

    theirs = get_peft_model(model(), LoraConfig(r=2, target_modules=["first", "second"], lora_bias=True)).eval()
    first, second = theirs.base_model.model.first, theirs.base_model.model.second
    fill([first.lora_A["default"].weight, first.lora_B["default"].weight])
    with torch.no_grad():
        for own, bias in ((first, 1.0), (second, 2.0)):
            own.lora_A["default"].weight.copy_(first.lora_A["default"].weight)
            own.lora_B["default"].weight.copy_(first.lora_B["default"].weight)
            own.lora_B["default"].bias.fill_(bias)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours, again, x = model(), model(), torch.randn(5, 4)
    load_adapter(ours, tmp_path / "theirs")
    torch.testing.assert_close(ours(x), theirs(x))
    load_adapter(again, save_adapter(ours, tmp_path / "ours"))
    torch.testing.assert_close(again(x), theirs(x))
    merge(ours)
    torch.testing.assert_close(ours(x), theirs(x))
