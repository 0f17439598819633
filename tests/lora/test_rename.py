"""An adapter under another name is the same adapter."""

import pytest
import torch
from torch import nn

from adapted_models import fill, mlp, outputs
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, activate, eject, inject, merge, rename, trainable_parameters
from rounding import alike

SETTINGS = {
    "plain": {},
    "dora": {"variant": "dora"},
    "slices": {"slices": {"block.up": ["0/2"]}},
    "whole": {"target_modules": "up", "modules_to_save": "down", "bias": "all"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_renamed_adapter_is_the_same(settings):
    model = mlp()
    inject(model, LoRAConfig(r=2, **settings), "first")
    inject(model, LoRAConfig(r=3), "other")
    activate(model, "first")
    parameters = trainable_parameters(model, "first")
    fill(parameters)
    before, n = outputs(model), len(model.state_dict())
    rename(model, "first", "french")
    assert all(map(lambda one, same: one is same, trainable_parameters(model, "french"), parameters))
    assert alike(outputs(model), before)
    assert len(model.state_dict()) == n
    assert not any(".first" in key for key in model.state_dict())
    activate(model, "other")
    assert not alike(outputs(model), before)
    activate(model, "french")
    assert alike(outputs(model), before)
    with pytest.raises(AdapterError, match='no adapter "first"; it has'):
        rename(model, "first", "third")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    eject(model, "french")
    eject(model)
    assert list(model.state_dict()) == list(mlp().state_dict())


def test_tied_layers_are_renamed_together():
    model = nn.ModuleDict({"tokens": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["tokens"].weight
    inject(model, LoRAConfig(target_modules="head"))
    rename(model, "default", "new")
    assert model["head"].lora.A["new"] is model["tokens"].lora.A["new"]
    assert model["tokens"].lora.flipped + model["head"].lora.flipped == ("new",)


def test_what_is_refused():
    model = mlp()
    inject(model, LoRAConfig(), "a")
    inject(model, LoRAConfig(), "b")
    with pytest.raises(AdapterError, match='has an adapter "b" already'):
        rename(model, "a", "b")
    with pytest.raises(AdapterError, match="can't be called"):
        rename(model, "a", "a.b")
    merge(model)
    with pytest.raises(AdapterError, match="holds a merged adapter"):
        rename(model, "a", "c")


def test_renamed_in_its_first_steps_it_trains_on():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    inject(model, LoRAConfig(r=2), "first")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(4):
        if step == 2:
            rename(model, "first", "french")
        optimiser.zero_grad()
        model(torch.ones(3, 4)).sum().backward()
        optimiser.step()
    assert model[1].lora.B["french"].any()
