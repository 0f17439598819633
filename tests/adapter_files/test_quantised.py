"""Adapters over quantised bases, both ways with the real PEFT."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from adapted_models import fill
from quantised_layers import KINDS, Net, inputs
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.lora import LoRAConfig, adapter_tensors, inject
from rounding import alike

pytestmark = pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without")

every_kind = pytest.mark.parametrize("kind", KINDS)


def ours(model):
    inject(model, LoRAConfig(r=2, alpha=6.0, target_modules=["up", "down"]))
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    return model


def run(model):
    # In training mode, where 8-bit layers of a CPU don't round their inputs: the same numbers everywhere.
    return model.train()(inputs()).detach()


@every_kind
def test_peft_runs_ours(kind, tmp_path):
    model = ours(Net(kind))
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(Net(kind), str(tmp_path))
    torch.testing.assert_close(run(theirs), run(model), rtol=0, atol=1e-6)


@every_kind
def test_ours_runs_pefts(kind, tmp_path):
    theirs = get_peft_model(Net(kind), LoraConfig(r=2, lora_alpha=6, target_modules=["up", "down"]))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(str(tmp_path))
    model = Net(kind)
    load_adapter(model, tmp_path)
    torch.testing.assert_close(run(model), run(theirs), rtol=0, atol=1e-6)


@every_kind
def test_between_a_plain_and_a_quantised_base(kind, tmp_path):
    plain, quantised = ours(Net()), ours(Net(kind))
    save_adapter(plain, tmp_path / "plain")
    save_adapter(quantised, tmp_path / "quantised")
    loaded = Net(kind)
    report = load_adapter(loaded, tmp_path / "plain")
    assert report.notes == [
        "2 weights of the base weren't compared: float32 when the adapter was saved, quantised or without data here."
    ]
    assert alike(run(loaded), run(quantised))
    loaded = Net()
    assert load_adapter(loaded, tmp_path / "quantised").notes == []
    assert alike(run(loaded), run(plain))


def test_saving_after_a_forward_in_eval_is_the_same_adapter(tmp_path):
    model = ours(Net("nf4"))
    before = copy.deepcopy(model).train()(inputs())
    with torch.no_grad():
        model.eval()(inputs())
    again = Net("nf4")
    load_adapter(again, save_adapter(model, tmp_path))
    assert alike(run(again), before)
