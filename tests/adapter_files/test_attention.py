"""Adapter files of attentions, both ways with the real PEFT, whose delta of `out_proj` counts twice."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.lora import LoRAConfig, adapter_tensors, inject


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0])


def encoder():
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)


MODELS = {
    "attention": (Attends, ["attention", "last"]),
    "encoder": (lambda: nn.Sequential(encoder(), encoder()), ["self_attn"]),
}
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).double()


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def run(model):
    """In training mode, where nothing is dropped: in eval PEFT's adapters in an encoder layer do nothing."""
    model.train()
    with torch.no_grad():
        return model(X)


def once(theirs):
    """Take PEFT's second delta of every output projection away (tests/peft_faults/test_attention.py shows it)."""
    for name, module in theirs.named_modules():
        if name.endswith("base_layer.out_proj"):
            module.scaling["default"] /= 2
    return theirs


def shapes(folder):
    return {key: tuple(tensor.shape) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("name", MODELS)
def test_peft_runs_ours(name, tmp_path):
    model = made(name)
    inject(model, LoRAConfig(r=2, alpha=6.0, target_modules=MODELS[name][1]))
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(made(name), str(tmp_path)).double()
    theirs.save_pretrained(str(tmp_path / "again"))
    assert shapes(tmp_path / "again") == shapes(tmp_path)
    assert not torch.allclose(run(theirs), run(model), atol=1e-3)
    torch.testing.assert_close(run(once(theirs)), run(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_ours_runs_pefts(name, tmp_path):
    theirs = get_peft_model(made(name), LoraConfig(r=2, lora_alpha=6, target_modules=MODELS[name][1])).double()
    fill(parameter for key, parameter in theirs.named_parameters() if "lora_" in key)
    theirs.save_pretrained(str(tmp_path))
    model = made(name)
    with pytest.warns(UserWarning, match="twice, in training too; here it counts once. Double its B"):
        load_adapter(model, tmp_path)
    save_adapter(model, tmp_path / "again")
    assert shapes(tmp_path / "again") == shapes(tmp_path)
    # As the warning says: what PEFT trained is this adapter with twice the B.
    with torch.no_grad():
        for path, (_, B) in adapter_tensors(model).items():
            B *= 2 if path.endswith("out_proj") else 1
    torch.testing.assert_close(run(model), run(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_of_the_input_projections_alone_is_the_same_in_peft(name, tmp_path):
    model = made(name)
    inject(model, LoRAConfig(r=2, alpha=6.0, target_modules="in_proj_weight"))
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    save_adapter(model, tmp_path)
    # PEFT has both projections or none: it misses the other's tensors, warns, and leaves its B zero.
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        theirs = PeftModel.from_pretrained(made(name), str(tmp_path)).double()
    torch.testing.assert_close(run(theirs), run(model), rtol=0, atol=1e-6)
