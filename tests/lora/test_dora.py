"""DoRA, compared with the real PEFT: outputs, merged weights, gradients, files."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from adapted_models import bert, gpt2, llama, outputs
from quantised_layers import Net, inputs
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.errors import AdapterFileError, ConfigError, TargetError
from rankwise.lora import (
    LoRAConfig,
    adapter_tensors,
    base_state_dict,
    count_parameters,
    disabled,
    eject,
    inject,
    merge,
    trainable_parameters,
    unmerge,
)
from rankwise.lora.adapter import adapted_layers
from rounding import alike, bits_of


class Chain(nn.Module):
    """Every layer type that PEFT has DoRA for."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6, padding_idx=2)
        self.conv1 = nn.Conv1d(6, 8, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(8, 4, (1, 2), bias=False)
        self.conv3 = nn.Conv3d(4, 4, (1, 2, 1))
        self.linear = nn.Linear(4, 5)
        self.bare = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        h = self.conv1(self.embedding(x).mT).tanh()
        h = self.conv2(h.unsqueeze(2)).tanh()
        h = self.conv3(h.unsqueeze(2).mT).tanh().mean((2, 3, 4))
        return self.bare(self.linear(h).tanh())


pytestmark = [
    # What peft and transformers say of themselves.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without"),
]

NAMES = ["embedding", "conv1", "conv2", "conv3", "linear", "bare"]
X = torch.arange(18).remainder(9).view(2, 9)


def chain():
    torch.manual_seed(0)
    return Chain().double().eval()


def values(tensors, start=0.0):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(start * tensor + torch.randn(tensor.shape, generator=generator) * 0.1)


def ours(model, **settings):
    inject(model, LoRAConfig(r=2, alpha=6.0, variant="dora", **settings))
    values(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    values((lora.magnitude["default"] for _, lora in adapted_layers(model).values()), 1.1)
    return model


def peft_of(model, folder):
    """The same adapter in PEFT, by file."""
    save_adapter(model, folder)
    bare = copy.deepcopy(model)
    eject(bare)
    return PeftModel.from_pretrained(bare, str(folder), is_trainable=True, autocast_adapter_dtype=False).eval()


def test_outputs_gradients_and_merged_weights_are_pefts(tmp_path):
    model = ours(chain(), target_modules=NAMES)
    theirs = peft_of(model, tmp_path).double()
    expected = theirs(X)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-6)
    model(X).square().sum().backward()
    expected.square().sum().backward()
    for path, (_, lora) in adapted_layers(model).items():
        layer = theirs.base_model.model.get_submodule(path)
        embedding = path == "embedding"
        A = layer.lora_embedding_A["default"] if embedding else layer.lora_A["default"].weight
        B = layer.lora_embedding_B["default"] if embedding else layer.lora_B["default"].weight
        m = layer.lora_magnitude_vector["default"].weight
        own = lora.magnitude["default"]
        for mine, other in ((lora.A["default"], A), (lora.B["default"], B), (own, m)):
            if embedding and mine is lora.A["default"]:
                # A padding index gets no gradient here, as in the base; PEFT trains it.
                mine.grad[:, 2] = other.grad[:, 2] = 0
            torch.testing.assert_close(mine.grad.flatten(), other.grad.flatten(), rtol=1e-5, atol=1e-6)
            assert other.grad.abs().sum() > 0
    merge(model)
    merged = theirs.merge_and_unload()
    for name in NAMES:
        torch.testing.assert_close(
            model.get_submodule(name).weight, merged.get_submodule(name).weight, rtol=0, atol=1e-6
        )


def test_files_go_both_ways_with_equal_keys(tmp_path):
    theirs = get_peft_model(chain(), LoraConfig(r=2, lora_alpha=6, target_modules=NAMES, use_dora=True))
    values(parameter for name, parameter in theirs.named_parameters() if "lora_" in name and "magnitude" not in name)
    values((parameter for name, parameter in theirs.named_parameters() if "magnitude" in name), 1.1)
    theirs = theirs.double().eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = chain()
    report = load_adapter(model, tmp_path / "theirs")
    assert report.trainable_parameters == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    torch.testing.assert_close(model(X), theirs(X), rtol=0, atol=1e-6)
    save_adapter(model, tmp_path / "ours")
    first, second = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert {key: t.shape for key, t in first.items()} == {key: t.shape for key, t in second.items()}
    again = chain()
    load_adapter(again, tmp_path / "ours")
    assert alike(again(X), model(X))


@pytest.mark.parametrize("make", [llama, bert, gpt2])
def test_models_of_transformers(make, tmp_path):
    model = ours(make())
    before = outputs(model)
    theirs = peft_of(model, tmp_path)
    torch.testing.assert_close(outputs(theirs), before, rtol=1e-5, atol=1e-5)
    merge(model)
    torch.testing.assert_close(outputs(model), before, rtol=1e-5, atol=1e-5)
    unmerge(model)
    assert alike(outputs(model), before)


def test_before_training_every_bit_is_the_bases():
    model = chain().float()
    with torch.no_grad():
        before = model(X)
        report = inject(model, LoRAConfig(r=2, variant="dora", target_modules=NAMES))
        with bits_of(model, NAMES) as found:
            assert alike(model(X), before)
    assert list(found) == NAMES
    assert all(torch.equal(base.view(torch.int32), out.view(torch.int32)) for base, out in found.values())
    widths = 6 + 8 + 4 + 4 + 5 + 3
    pairs = sum(tensor.numel() for pair in adapter_tensors(model).values() for tensor in pair)
    assert report.trainable_parameters == count_parameters(model) == pairs + widths
    assert len(trainable_parameters(model)) == 3 * len(NAMES)


def test_copies_the_base_and_leaving():
    model = chain()
    keys, base = list(model.state_dict()), model(X)
    ours(model, target_modules=NAMES)
    expected = model(X)
    assert alike(copy.deepcopy(model)(X), expected)
    assert alike(pickle.loads(pickle.dumps(model))(X), expected)
    assert list(base_state_dict(model)) == keys
    model.load_state_dict(chain().state_dict())
    model.load_state_dict(model.state_dict())
    assert alike(model(X), expected)
    with disabled(model):
        assert alike(model(X), base)
    eject(model)
    assert (list(model.state_dict()), alike(model(X), base)) == (keys, True)


def test_beside_another_adapter_both_are_added():
    model, base = chain(), chain()(X)
    layer = model.bare
    x = torch.randn(3, 5, dtype=torch.float64)
    base = layer(x)
    ours(model, target_modules="bare")
    dora = layer(x) - base
    inject(model, LoRAConfig(r=1, target_modules="bare"), "plain")
    values(adapter_tensors(model, "plain")["bare"])
    plain = layer(x) - base
    layer.lora.active = ("default", "plain")
    torch.testing.assert_close(layer(x), base + dora + plain)
    merge(model)
    torch.testing.assert_close(layer(x), base + dora + plain)


def test_weights_that_are_read_without_a_call():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    base = model(x)
    inject(model, LoRAConfig(r=2, variant="dora"))
    assert alike(model(x), base)
    eject(model)
    unmerged = ours(model)(x)
    assert not torch.allclose(unmerged, base)
    merge(model)
    torch.testing.assert_close(model(x), unmerged)


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8"])
def test_over_a_quantised_base(kind, tmp_path):
    model = ours(Net(kind), target_modules=["up", "down"])
    theirs = peft_of(model, tmp_path)
    torch.testing.assert_close(model.train()(inputs()), theirs.train()(inputs()), rtol=1e-4, atol=1e-4)


def test_what_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r'variant "dorra" is not known; there are "dora", "lora".*Did you mean "dora"'
    ):
        LoRAConfig(variant="dorra")
    with pytest.raises(TargetError, match=r'"0" can\'t be adapted with variant="dora": DoRA needs a weight with'):
        inject(nn.Sequential(nn.ConvTranspose1d(2, 3, 2)), LoRAConfig(variant="dora", target_modules="0"))
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[1] = 0
    with pytest.raises(TargetError, match="divides by the norm of each output's weights, and 1 are all zero"):
        inject(nn.Sequential(layer), LoRAConfig(variant="dora"))
    tied = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    with pytest.raises(TargetError, match="shares its weight with a layer that reads it transposed; pass untie=True"):
        inject(tied, LoRAConfig(variant="dora", target_modules="head"))
    save_adapter(ours(chain(), target_modules=NAMES), tmp_path)
    with pytest.raises(AdapterFileError, match="is of a DoRA adapter, whose magnitude only load_adapter can use"):
        read_adapter(tmp_path)


def test_damaged_files(tmp_path):
    from safetensors.torch import save_file

    save_adapter(ours(chain(), target_modules=NAMES), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.linear.lora_magnitude_vector"
    save_file({k: t for k, t in tensors.items() if k != key}, path)
    with pytest.raises(AdapterFileError, match=f'has no "{key}"; with use_dora every module has A, B and magnitude'):
        load_adapter(chain(), tmp_path)
    save_file({**tensors, key: torch.ones(7)}, path)
    with pytest.raises(AdapterFileError, match=r'magnitude of "linear" has shape \(7,\)'):
        load_adapter(chain(), tmp_path)
    save_file(tensors, path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    with pytest.raises(AdapterFileError, match="It is of a DoRA adapter, but the settings don't say use_dora"):
        load_adapter(chain(), tmp_path)
