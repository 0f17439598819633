"""Attach and take off: what changes, what must not, and what is undone."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from rankwise.errors import AdapterError, TargetError
from rankwise.lora import (
    LoRAConfig,
    activate,
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
from rounding import alike


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def state_of(model):
    """Everything about a model that injecting could disturb."""
    return {
        "keys": list(model.state_dict()),
        "metadata": dict(model.state_dict()._metadata),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trainable": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "mode": {name: module.training for name, module in model.named_modules()},
    }


def assert_same(after, before):
    torch.testing.assert_close(after.pop("weights"), before.pop("weights"), rtol=0, atol=0)
    assert after == before


def step(model, parameters, lr=0.1):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_the_report_counts_and_prints():
    report = inject(mlp(), LoRAConfig(r=2, target_modules="0"))
    assert report.trainable_parameters == 2 * (4 + 8)
    assert str(report).splitlines() == [
        "module  count  type    shape  r  parameters",
        "0           1  Linear  8 x 4  2          24",
        'adapter "default": 24 trainable parameters in 1 modules, 32.43% of the base\'s 74',
        "left out  count  type    why",
        "3             1  Linear  no target names it",
        '1 normalisation layer keeps the base\'s running statistics in train mode too ("1"); to train them: '
        "modules_to_save",
    ]


def test_layers_that_differ_in_a_number_are_one_row():
    model = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in range(3)])
    assert str(inject(model, LoRAConfig(r=1))).splitlines()[1].split() == [
        "*.q",
        "3",
        "Linear",
        "2",
        "x",
        "2",
        "1",
        "12",
    ]


def test_class_keys_and_mode_stay():
    model = mlp()
    model[0].eval()
    before, classes = state_of(model), [type(module) for module in model]
    inject(model, LoRAConfig())
    after = state_of(model)
    assert [key for key in after["keys"] if ".lora." not in key] == before["keys"]
    assert [type(module) for module in model] == classes
    assert {name: after["mode"][name] for name in before["mode"]} == before["mode"]
    assert [model[0].lora.training, model[0].lora.A.training, model[3].lora.training] == [False, False, True]


def test_only_a_and_b_learn_and_the_base_never_changes():
    model = mlp()
    inject(model, LoRAConfig(r=2))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trainable_parameters(model)}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step(model, model.parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lora." not in name), name


def test_lower_rank_starts_as_the_first_rows():
    low, high = mlp(), mlp()
    inject(low, LoRAConfig(r=2))
    inject(high, LoRAConfig(r=5))
    for name, (A, _) in adapter_tensors(low).items():
        assert torch.equal(A, adapter_tensors(high)[name][0][:2])


def test_eject_gives_everything_back():
    model = mlp()
    model[1].weight.requires_grad_(False)
    model[3].eval()
    before = state_of(model)
    inject(model, LoRAConfig(r=2), "one")
    inject(model, LoRAConfig(r=2, target_modules="3"), "two")
    eject(model)
    assert_same(state_of(model), before)


def test_eject_one_of_two():
    model, x = mlp().eval(), torch.randn(3, 4)
    inject(model, LoRAConfig(r=2), "one")
    nn.init.normal_(adapter_tensors(model, "one")["0"][1])
    expected = model(x)
    inject(model, LoRAConfig(r=2, target_modules="3"), "two")
    eject(model, "two")
    activate(model, "one")
    assert alike(model(x), expected)
    assert not model[0].weight.requires_grad
    eject(model, "one")
    assert model[0].weight.requires_grad


def test_eject_through_an_outer_model_and_a_copy():
    inner = mlp()
    inject(inner, LoRAConfig(r=2))
    outer = copy.deepcopy(nn.ModuleDict({"inner": inner}))
    eject(outer)
    assert all(parameter.requires_grad for parameter in outer.parameters())
    assert list(outer["inner"].state_dict()) == list(mlp().state_dict())
    assert hasattr(inner[0], "lora")


def test_eject_while_merged_restores_the_weights():
    model = mlp()
    before = state_of(model)
    inject(model, LoRAConfig(r=2))
    nn.init.normal_(adapter_tensors(model)["0"][1])
    merge(model)
    eject(model)
    assert_same(state_of(model), before)


def test_merge_for_good_then_eject_is_a_plain_merged_model():
    model, x = mlp().eval(), torch.randn(3, 4)
    inject(model, LoRAConfig(r=2))
    nn.init.normal_(adapter_tensors(model)["0"][1])
    expected = model(x)
    merge(model, keep_base=False)
    eject(model)
    assert list(model.state_dict()) == list(mlp().state_dict())
    torch.testing.assert_close(model(x), expected)


def test_a_failed_inject_changes_nothing():
    model = mlp()
    model[3].lora = nn.Identity()
    before = state_of(model)
    for error, settings in ((TargetError, {"target_modules": "zzz"}), (AdapterError, {})):
        with pytest.raises(error):
            inject(model, LoRAConfig(**settings))
        assert_same(state_of(model), copy.deepcopy(before))


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "keys", "training"])
def test_names_that_cannot_be(name):
    with pytest.raises(AdapterError, match="An adapter can't be called"):
        inject(mlp(), LoRAConfig(), name)


def test_a_name_twice():
    model = mlp()
    inject(model, LoRAConfig())
    with pytest.raises(AdapterError, match='has an adapter "default" already'):
        inject(model, LoRAConfig(target_modules="3"))


def test_a_foreign_submodule_lora():
    model = mlp()
    model[0].lora = nn.Identity()
    with pytest.raises(AdapterError, match='"0" has an attribute "lora" already, of type Identity'):
        inject(model, LoRAConfig())


def test_activate_and_disabled():
    model, x = mlp().eval(), torch.randn(3, 4)
    base = model(x).detach()
    inject(model, LoRAConfig(r=2))
    nn.init.normal_(adapter_tensors(model)["0"][1])
    with_adapter = model(x)
    with disabled(model):
        assert alike(model(x), base)
        with disabled(model):
            pass
        assert alike(model(x), base)
    assert alike(model(x), with_adapter)
    activate(model)
    assert alike(model(x), base)
    activate(model, "default")
    assert alike(model(x), with_adapter)
    with pytest.raises(AdapterError, match='no adapter "other"'):
        activate(model, "default", "other")


def test_disabled_ends_when_the_block_fails():
    model = mlp()
    inject(model, LoRAConfig())
    with pytest.raises(ZeroDivisionError), disabled(model):
        1 / 0  # noqa: B018
    assert not model[0].lora.disabled


def test_what_a_merged_model_refuses():
    model = mlp()
    inject(model, LoRAConfig())
    merge(model)
    for act in (lambda: activate(model), lambda: inject(model, LoRAConfig(), "b"), lambda: eject(model, "default")):
        with pytest.raises(AdapterError, match="call unmerge"):
            act()
    with pytest.raises(AdapterError, match="disabled doesn't affect"), disabled(model):
        pass
    with pytest.raises(RuntimeError, match="call unmerge before load_state_dict"):
        model.load_state_dict(mlp().state_dict())
    unmerge(model)
    activate(model)


def test_eject_without_an_adapter():
    with pytest.raises(AdapterError, match="The Sequential has no adapter to eject"):
        eject(mlp())
    with pytest.raises(AdapterError, match='no adapter "x"; it has none'):
        eject(mlp(), "x")


@pytest.mark.parametrize("merged", [False, True])
def test_base_state_dict_is_the_bases(merged):
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(4, 2))})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    metadata = dict(model.state_dict()._metadata)
    inject(model, LoRAConfig(r=2))
    nn.init.normal_(adapter_tensors(model)["a"][1])
    if merged:
        merge(model)
    base = base_state_dict(model)
    assert list(base) == list(before)
    assert base._metadata == metadata
    assert all(torch.equal(base[name], before[name]) for name in before)


def test_base_state_dict_after_the_base_was_freed():
    model = mlp()
    inject(model, LoRAConfig())
    merge(model, keep_base=False)
    with pytest.raises(AdapterError, match=r'base weight of "0" was freed .* call eject\(model\)'):
        base_state_dict(model)


def test_a_module_under_two_names_is_adapted_once_and_acts_under_both():
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(shared, shared)
    inject(model, LoRAConfig(r=2, alpha=2.0))
    A, B = adapter_tensors(model)["0"]
    nn.init.normal_(B)
    W, x = shared.weight + B @ A, torch.randn(3, 4)
    torch.testing.assert_close(model(x), x @ W.mT @ W.mT)


def test_a_parametrised_layer_is_adapted():
    layer = parametrizations.weight_norm(nn.Linear(4, 2))
    x = torch.randn(3, 4)
    before = layer(x)
    inject(layer, LoRAConfig(r=2))
    assert alike(layer(x), before)
    nn.init.normal_(adapter_tensors(layer)[""][1])
    assert not torch.allclose(layer(x), before)


def test_a_parametrised_layer_is_named_by_its_number():
    """What computes its weight is called `parametrizations.weight.0`, which ends in the same number."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 2, 3)))
    report = inject(model, LoRAConfig(r=1, target_modules="0"))
    assert [target.name for target in report.adapted] == ["0"]
    assert report.left_out == []


@given(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_count_is_r_times_the_sum_of_sides(r, widths):
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
    report = inject(model, LoRAConfig(r=r))
    expected = sum(r * (a + b) for a, b in itertools.pairwise(widths))
    assert report.trainable_parameters == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_the_stored_config_can_be_pickled_whatever_the_targets_were():
    model = mlp()
    inject(model, LoRAConfig(target_modules=lambda name, module: name == "0"))
    assert copy.deepcopy(model)[0].lora.configs["default"].target_modules == ("0",)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3},
        {"r": 2, "variant": "dora", "target_modules": "0"},
        {"r": 2, "target_modules": "0", "modules_to_save": "2", "bias": "all"},
    ],
)
def test_a_dry_run_reports_what_would_be_done_and_does_nothing(settings):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    dry = inject(model, LoRAConfig(**settings), dry_run=True)
    assert list(model.state_dict()) == list(before)
    assert dict(model.named_modules()) == modules
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    done = inject(model, LoRAConfig(**settings))
    assert str(dry) == str(done)
    assert dry.trainable_parameters == done.trainable_parameters == count_parameters(model)
    again = inject(model, LoRAConfig(**{**settings, "modules_to_save": ()}), "two", dry_run=True)
    assert again.base_parameters == done.base_parameters
    assert "two" not in model[0].lora.scale


def test_a_dry_run_meets_what_attaching_would():
    model = nn.Sequential(nn.Linear(4, 8))
    model[0].lora = nn.Linear(1, 1)
    with pytest.raises(AdapterError, match='has an attribute "lora" already'):
        inject(model, LoRAConfig(), dry_run=True)
