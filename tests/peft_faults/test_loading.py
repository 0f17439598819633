"""What peft 0.21.2 passes over when it attaches, loads or merges; here each is an error, or right."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from adapted_models import fill, mlp, outputs, theirs
from rankwise.adapter_files import load_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge
from rounding import alike


@pytest.fixture
def saved(tmp_path):
    theirs(mlp(), target_modules=["up"]).save_pretrained(str(tmp_path))
    return tmp_path


def retensor(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor.clone() for key, tensor in change(load_file(path)).items()}, path)


def test_a_wrong_prefix_is_an_error(saved):
    retensor(saved, lambda tensors: {f"model.{key}": tensor for key, tensor in tensors.items()})
    with pytest.warns(UserWarning, match="missing adapter keys"):  # peft goes on with an adapter of nothing
        wrapped = PeftModel.from_pretrained(mlp(), str(saved))
    assert alike(outputs(wrapped), outputs(mlp()))
    with pytest.raises(AdapterFileError, match="of no use here"):
        load_adapter(mlp(), saved)


def test_a_tensor_too_many_is_an_error(saved):
    key = "base_model.model.elsewhere.lora_A.weight"
    retensor(saved, lambda tensors: {**tensors, key: torch.ones(2, 6), key.replace("_A", "_B"): torch.ones(6, 2)})
    PeftModel.from_pretrained(mlp(), str(saved))  # not a word
    with pytest.raises(AdapterFileError, match='tensors for "elsewhere", which the model lacks'):
        load_adapter(mlp(), saved)


def test_a_missing_tensor_is_an_error(saved):
    retensor(saved, lambda tensors: {key: t for key, t in tensors.items() if "model.up.lora_B" not in key})
    with pytest.raises(AdapterFileError, match="the other half of a pair"):
        load_adapter(mlp(), saved)


def test_the_users_settings_stay_as_they_are():
    # peft writes the modules it found into the configuration it was given.
    given = LoraConfig(target_modules="all-linear")
    get_peft_model(mlp(), given)
    assert given.target_modules != "all-linear"
    config = LoRAConfig()
    before = dataclasses.asdict(config)
    inject(mlp(), config)
    assert dataclasses.asdict(config) == before


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
def test_a_grouped_convolution_merges():
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)).double().eval()

    x = torch.randn(2, 4, 5, 5).double()
    wrapped = get_peft_model(model(), LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(NotImplementedError):
        wrapped.merge_and_unload()
    ours = model()
    inject(ours, LoRAConfig(r=2, target_modules="0"))
    fill(tensor for pair in adapter_tensors(ours).values() for tensor in pair)
    before = ours(x)
    merge(ours)
    torch.testing.assert_close(ours(x), before)
