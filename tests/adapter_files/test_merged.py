"""Merged models in their own format: they load without Rankwise, and the model they came from is as before."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from adapted_models import fill, llama
from rankwise import quantize
from rankwise.adapter_files.merged import save_merged
from rankwise.errors import AdapterError, OutputError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge, unmerge
from rounding import alike


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.up, self.norm, self.down = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.down(self.norm(self.up(self.tokens(ids)))))


def adapted(model, **settings):
    inject(model, LoRAConfig(r=2, **settings))
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    return model


def merged_output(model, x):
    merge(model)
    with torch.no_grad():
        out = model(x)
    unmerge(model)
    return out


IDS = torch.arange(7)


@pytest.mark.parametrize(("size", "files"), [(10**9, 1), (200, 5)])
def test_a_plain_module_loads_from_its_files(size, files, tmp_path):
    torch.manual_seed(0)
    fresh = Net().eval()
    model = adapted(copy.deepcopy(fresh), modules_to_save="norm")
    with torch.no_grad():
        model.norm.lora_trained.own["default"].weight.fill_(2.0)
    before, out = copy.deepcopy(model.state_dict()), merged_output(model, IDS)
    save_merged(model, tmp_path / "m", max_shard_size=size)
    found = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(found) == files
    assert all(path.stat().st_size < size + 2000 for path in found)
    tensors = {key: tensor for path in found for key, tensor in load_file(path).items()}
    fresh.load_state_dict(tensors)
    with torch.no_grad():
        assert alike(fresh(IDS), out)
    if files > 1:
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == tensors.keys()
        assert {*index["weight_map"].values()} == {path.name for path in found}
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert model.up.lora.active == ("default",)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_loads_by_from_pretrained(tied, tmp_path):
    model = llama()
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    adapted(model, target_modules=["all-linear", "embed_tokens"])
    before, out = copy.deepcopy(model.state_dict()), merged_output(model, IDS[None]).logits
    report = save_merged(model, tmp_path / "m", max_shard_size=5000)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    assert report.worst.error < 1e-6
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        assert alike(loaded(IDS[None]).logits, out)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_quantised_base_is_saved_with_plain_weights_on_request(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    plain = copy.deepcopy(model)
    quantize(model, "nf4", skip="2")
    adapted(model)
    with pytest.raises(AdapterError, match="is quantised, and most of delta would be lost"):
        save_merged(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    save_merged(model, tmp_path / "m", dequantize=True)
    x = torch.randn(2, 64)
    merge(model, dequantize=True)
    plain.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"))
    assert alike(plain(x), model(x))


def test_what_is_refused_leaves_nothing(tmp_path):
    model = adapted(nn.Sequential(nn.Linear(4, 4)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there and not empty"):
        save_merged(model, tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="can't be written"):
        save_merged(model, tmp_path / "file" / "below")
    assert not model[0].lora.merged
    with torch.no_grad():
        model[0].lora.B["default"].fill_(torch.inf)
    with pytest.raises(AdapterError, match="not finite"):
        save_merged(model, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    quantised = llama()
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(AdapterError, match="says that its weights are quantised"):
        save_merged(adapted(quantised), tmp_path / "new")


class OfTheHub(Net):
    """As the hub's mixin and diffusers have it: a `save_pretrained` that takes no weights, and writes the model's."""

    def __init__(self):
        super().__init__()
        self.config = {}

    def save_pretrained(self, directory, **more):
        raise AssertionError("the adapters would be written too")


def test_only_a_save_pretrained_that_takes_weights_is_used(tmp_path):
    torch.manual_seed(0)
    model = adapted(OfTheHub().eval())
    out = merged_output(model, IDS)
    save_merged(model, tmp_path / "m")
    fresh = Net().eval()
    fresh.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"))
    assert alike(fresh(IDS), out)


def test_the_folder_one_is_in_and_what_a_killed_run_left(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = adapted(Net().eval())
    (tmp_path / "here").mkdir()
    (tmp_path / ".here.unfinished").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_merged(model, ".")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["model.safetensors"]
    merge(model)
    unmerge(model)
