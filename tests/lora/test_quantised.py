"""Quantised layers under adapters, compared with the same layers with dequantised weights."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch import nn

from adapted_models import fill
from quantised_layers import KINDS, Net, inputs
from rankwise.adapter_files import save_adapter
from rankwise.errors import AdapterError, TargetError
from rankwise.lora import (
    LoRAConfig,
    adapter_tensors,
    base_state_dict,
    count_parameters,
    disabled,
    eject,
    inject,
    merge,
    register_layer_type,
    trainable_parameters,
    unmerge,
)
from rankwise.lora.layer_types import LAYER_TYPES, Quantised, layer_type_of
from rankwise.lora.layer_types.linear import LINEAR
from rounding import alike, bits_of

every_kind = pytest.mark.parametrize("kind", KINDS)
either_bias = pytest.mark.parametrize("bias", [True, False])


def adapted(model):
    inject(model, LoRAConfig(r=2, alpha=4.0))
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    return model


def gradients(model, x):
    model(x).square().sum().backward()
    return [tensor.grad for pair in adapter_tensors(model).values() for tensor in pair]


@every_kind
def test_all_linear_takes_them_and_b_zero_gives_every_bit(kind):
    model, x = Net(kind), inputs()
    for training in (True, False):
        model.train(training)
        # On some CPUs 4-bit layers would rearrange themselves in this forward: that is the base's doing, not ours.
        with torch.enable_grad():
            before = model(x.clone().requires_grad_())
        report = inject(model, LoRAConfig(r=2))
        assert [target.name for target in report.adapted] == ["up", "down"]
        assert report.base_parameters == Net().norm.weight.numel() * 2 + 64 * 128 + 128 + 128 * 32 + 32
        assert count_parameters(model) == 2 * (64 + 128) + 2 * (128 + 32)
        with bits_of(model, ["up", "down"]) as found:
            assert alike(model(x.clone().requires_grad_()), before)
        assert list(found) == ["up", "down"]
        assert all(torch.equal(base.view(torch.int32), out.view(torch.int32)) for base, out in found.values())
        eject(model)


@every_kind
@either_bias
def test_gradients_are_those_over_the_dequantised_weights(kind, bias):
    model, x = Net(kind, bias).train(), inputs()
    # After a forward in eval mode, in which bitsandbytes rearranges 4-bit weights on some CPUs.
    adapted(model).eval()
    with torch.no_grad():
        model(x)
    model.train()
    reference = adapted(model_of(model))
    torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(gradients(model, x), gradients(reference, x), strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def model_of(model):
    bare = copy.deepcopy(model)
    eject(bare)
    return bare.dequantised()


@every_kind
def test_eval_after_training_is_near_the_dequantised_model(kind):
    """8-bit layers round their inputs too where they don't train."""
    model = adapted(Net(kind)).eval()
    reference = adapted(model_of(model)).eval()
    with torch.no_grad():
        ours, theirs = model(inputs()), reference(inputs())
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


@every_kind
def test_merge_is_refused_and_changes_nothing(kind):
    model = adapted(Net(kind)).train()
    before = model(inputs())
    with pytest.raises(AdapterError, match=r'"up" \(.*\) is quantised, .* 2 quantised layers plain float32 weights'):
        merge(model)
    assert alike(model(inputs()), before)


@every_kind
@pytest.mark.parametrize("keep_base", [True, False])
def test_merge_into_plain_weights(kind, keep_base):
    model, x = adapted(Net(kind)).train(), inputs()
    before, cls, keys = model(x), type(model.up), list(model.state_dict())
    weight = model.up.weight
    report = merge(model, dequantize=True, keep_base=keep_base)
    assert [layer.dtype.startswith("float32, was Linear") for layer in report.layers] == [True, True]
    assert type(model.up) is nn.Linear
    assert type(model.up.weight) is nn.Parameter
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    if keep_base:
        with pytest.raises(AdapterError, match="is dequantised while its adapter is merged"):
            base_state_dict(model)
        unmerge(model)
        assert model.up.weight is weight
        assert type(model.up) is cls
        assert list(model.state_dict()) == keys
        assert alike(model(x), before)
        with disabled(model):
            assert not alike(model(x), before)
    else:
        with pytest.raises(AdapterError, match="was freed"):
            unmerge(model)
        merged = model(x)
        eject(model)
        assert alike(model(x), merged)
        fresh = Net()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh.eval()(x), model.eval()(x))


def test_merge_takes_the_type_of_the_models_other_weights():
    model = Net("nf4").to(torch.bfloat16)
    adapted(model)
    assert {layer.dtype for layer in merge(model, dequantize=True).layers} == {"bfloat16, was Linear4bit"}
    assert model(inputs().bfloat16()).dtype == torch.bfloat16


@every_kind
def test_copies_and_pickles(kind):
    model, x = adapted(Net(kind)).train(), inputs()
    expected = model(x)
    assert alike(copy.deepcopy(model)(x), expected)
    if not kind.startswith("torchao"):  # its own weights can't all be pickled
        assert alike(pickle.loads(pickle.dumps(model))(x), expected)


def test_frozen_4bit_layers_beside_the_adapted_pass_gradients_after_eval():
    model, x = Net("nf4", bias=False), inputs()
    with torch.no_grad():
        model.eval()(x)  # here they may rearrange themselves, before any adapter
    inject(model, LoRAConfig(r=2, target_modules="up"))
    fill(adapter_tensors(model)["up"])
    with torch.no_grad():
        model(x)
    model.train()
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model, x))


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "eva"])
@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8"])
def test_starts_are_those_over_the_dequantised_weight(kind, init):
    model, base = Net(kind).train(), Net(kind).train()
    reference = base.dequantised()
    for net in (model, reference):
        inject(net, LoRAConfig(r=4, init=init, target_modules="up"), init_data=[inputs()])
    for ours, theirs in zip(adapter_tensors(model)["up"], adapter_tensors(reference)["up"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert adapter_tensors(model)["up"][0].any()
    torch.testing.assert_close(model(inputs()), base(inputs()), rtol=0, atol=1e-5)


def test_a_base_that_is_looked_at_stays():
    """Running it in eval mode, by which bitsandbytes would rearrange its 4 bits and round their scales."""
    model, base = Net("nf4").eval(), Net("nf4").train()
    inject(model, LoRAConfig(r=2), example=inputs())
    assert alike(model.train()(inputs()), base(inputs()))


def test_what_needs_a_gradient_of_the_weight_is_refused():
    with pytest.raises(TargetError, match=r'"up" can\'t start with init="lora-ga": .* this one is in few bits'):
        inject(Net("nf4"), LoRAConfig(r=2, init="lora-ga"), init_data=[inputs()])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_vera_in_peft(kind, tmp_path):
    model = Net(kind).train()
    inject(model, LoRAConfig(r=4, variant="vera"))
    fill(trainable_parameters(model))
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(Net(kind), str(tmp_path)).train()
    assert not alike(model(inputs()), Net(kind).train()(inputs()))
    torch.testing.assert_close(theirs(inputs()), model(inputs()), rtol=0, atol=1e-6)


def test_a_quantised_layer_can_not_be_trained_whole():
    model = Net("nf4")
    with pytest.raises(AdapterError, match=r'"down.weight" is quantised and can\'t be trained in full'):
        inject(model, LoRAConfig(r=1, target_modules="up", modules_to_save="down"))


def test_a_quantised_weight_with_another_forward_is_refused():
    class Twice(type(Net("nf4").up)):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Net("nf4")
    model.up.__class__ = Twice
    with pytest.raises(AdapterError, match="is shared, or read otherwise than by the forward of its listed class"):
        inject(model, LoRAConfig(r=1))


def test_a_forward_replaced_on_the_instance_refuses_to_be_dequantised():
    model = adapted(Net("nf4"))
    forward = model.up.forward
    model.up.forward = lambda x: forward(x)
    with pytest.raises(AdapterError, match='forward of "up" was replaced on the instance'):
        merge(model, dequantize=True)
    assert not model.up.lora.merged


class Halves(nn.Module):
    """Somebody's own: a weight in float16 as whole numbers."""

    def __init__(self, layer):
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().half().view(torch.int16), requires_grad=False)

    def forward(self, x):
        return x @ self.weight.view(torch.float16).to(x.dtype).T


def test_a_quantised_layer_of_the_users_own(monkeypatch):
    monkeypatch.setattr("rankwise.lora.layer_types.LAYER_TYPES", dict(LAYER_TYPES))
    own = Quantised(lambda layer: layer.weight.view(torch.float16))
    register_layer_type(Halves, replace(LINEAR, name="Halves", quantised=own))
    model = nn.Sequential(Halves(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(2, 6)
    base = model(x)
    inject(model, LoRAConfig(r=2))
    assert alike(model(x), base)
    assert layer_type_of(model[0]).name == "Halves"
    fill(tensor for pair in adapter_tensors(model).values() for tensor in pair)
    assert not alike(model(x), base)
    with pytest.raises(AdapterError, match="is quantised"):
        merge(model)
