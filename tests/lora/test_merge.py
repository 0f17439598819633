"""Merge and unmerge: the same function, the same bits back, and what rounding loses."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, activate, adapter_tensors, disabled, inject, merge, unmerge
from rounding import alike, exact

sizes = st.integers(1, 6)


def adapted(model, name="default", std=0.1, **settings):
    inject(model, LoRAConfig(**{"r": 2, **settings}), name)
    with torch.no_grad():
        for _, B in adapter_tensors(model, name).values():
            B.normal_(std=std)
    return model


@given(sizes, sizes, sizes, st.sampled_from([nn.Linear, Conv1D]))
def test_merged_equals_unmerged_and_unmerge_gives_the_bits_back(r, d_in, d_out, layer_type):
    layer = nn.Linear(d_in, d_out) if layer_type is nn.Linear else Conv1D(d_out, d_in)
    before, x = copy.deepcopy(layer.state_dict()), torch.randn(3, d_in)
    adapted(layer, r=r)
    expected = layer(x)
    merge(layer)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(nn.Module.state_dict(layer)["weight"], layer.weight)
    unmerge(layer)
    assert torch.equal(layer.weight, before["weight"])
    assert alike(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_come_back_exactly(dtype):
    layer = nn.Linear(6, 5).to(dtype)
    before = layer.weight.clone()
    adapted(layer)
    merge(layer)
    assert layer.weight.dtype == dtype
    assert not torch.equal(layer.weight, before)
    unmerge(layer)
    assert torch.equal(layer.weight, before)


def test_the_sum_is_taken_in_float32_and_rounded_once():
    layer = nn.Linear(16, 16).bfloat16()
    W = layer.weight.float()
    adapted(layer)
    A, B = adapter_tensors(layer)[""]
    exact(A, 2**-6)
    exact(B, 2**-6)
    merge(layer)
    assert torch.equal(layer.weight, (W + 16.0 * (B @ A)).bfloat16())


def test_several_active_adapters_merge_together_and_inactive_ones_stay_out():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    for seed, name in enumerate(("one", "two", "three")):
        adapted(model, name, seed=seed)
    activate(model, "one", "two")
    expected = model(x)
    merge(model)
    torch.testing.assert_close(model(x), expected)


def test_small_deltas_in_bfloat16_are_lost_and_said():
    layer = nn.Linear(32, 32).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    adapted(layer, std=1e-5)
    lost = merge(layer).worst
    assert lost.held == 0.0
    assert lost.error == pytest.approx(1.0)
    unmerge(layer)
    wide = nn.Linear(32, 32)
    assert merge(adapted(wide, std=0.1)).worst.held > 0.99


def test_the_report_prints():
    report = merge(adapted(nn.Sequential(nn.Linear(4, 4))))
    assert str(report).splitlines()[0].split("  ")[0] == "merged"
    assert "float32" in str(report)


def test_a_delta_of_zero_is_held_whole():
    layer = nn.Linear(2, 2)
    inject(layer, LoRAConfig(r=1))
    report = merge(layer).worst
    assert (report.held, report.error) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda layer: layer.lora.B["default"].fill_(float("nan")), "delta"),
        (lambda layer: layer.weight.fill_(float("inf")), "the base weight"),
        (lambda layer: layer.lora.B["default"].fill_(1e6), "their sum in torch.float16"),
    ],
)
def test_values_that_are_not_finite_are_refused_and_nothing_is_half_merged(spoil, culprit):
    model = adapted(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half())
    first = model[0].weight.clone()
    with torch.no_grad():
        spoil(model[1])
    with pytest.raises(AdapterError, match=f'"1" can\'t be merged: {culprit} holds values that are not finite'):
        merge(model)
    assert torch.equal(model[0].weight, first)
    assert model[0].lora.merged == ()


def test_without_the_base_there_is_no_way_back():
    layer, x = adapted(nn.Linear(4, 4)), torch.randn(3, 4)
    expected = layer(x)
    merge(layer, keep_base=False)
    assert layer.lora.base_weight is None
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(AdapterError, match='base weight of "" was freed'):
        unmerge(layer)
    torch.testing.assert_close(layer(x), expected)


def test_a_copy_of_a_merged_model_can_be_unmerged():
    layer = adapted(nn.Linear(4, 4))
    before = layer.weight.clone()
    merge(layer)
    twin = copy.deepcopy(layer)
    unmerge(twin)
    assert torch.equal(twin.weight, before)
    assert not torch.equal(layer.weight, before)


def test_states_that_cannot_merge():
    with pytest.raises(AdapterError, match="No adapter is active"):
        merge(nn.Linear(2, 2))
    layer = adapted(nn.Linear(2, 2))
    with disabled(layer), pytest.raises(AdapterError, match="is disabled"):
        merge(layer)
    merge(layer)
    with pytest.raises(AdapterError, match="is merged already; call unmerge first"):
        merge(layer)
    unmerge(layer)
    with pytest.raises(AdapterError, match="Nothing is merged"):
        unmerge(layer)
    activate(layer)
    with pytest.raises(AdapterError, match="No adapter is active"):
        merge(layer)


def test_a_parametrised_weight_is_refused():
    layer = adapted(parametrizations.weight_norm(nn.Linear(4, 2)))
    with pytest.raises(AdapterError, match="computed from other tensors"):
        merge(layer)


def test_hooks_of_others_see_the_adapted_layer():
    x, layer = torch.randn(3, 4), nn.Linear(4, 2)
    layer.register_forward_hook(lambda layer, args, output: output.exp())
    adapted(layer, bias="all", variant="dora")
    layer.register_forward_hook(lambda layer, args, output: output * 3)
    expected = layer(x)
    merge(layer)
    torch.testing.assert_close(layer(x), expected)
