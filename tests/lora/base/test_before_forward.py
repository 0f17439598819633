"""The one hook before a model's forwards."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

from rankwise import LoRAConfig, eject, inject
from rankwise.errors import AdapterError
from rankwise.lora.base.before_forward import BeforeForward, before_forward


def test_all_that_looks_shares_one_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    inject(model, LoRAConfig(r=1))
    model(torch.ones(1, 3))  # the first forward is watched by hooks that then go
    (hook,) = model._forward_pre_hooks.values()
    assert hook.__self__ is before_forward(model)
    eject(model)
    assert not model._forward_pre_hooks


def test_a_model_that_is_one_layer_looks_in_its_own_hook() -> None:
    model = nn.Linear(3, 3, bias=False)
    inject(model, LoRAConfig(r=1))
    model(torch.ones(1, 3))
    assert not model._forward_pre_hooks
    looks = before_forward(model)
    assert looks.always
    for same in (model, deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert before_forward(same) is before_forward(same)
        weight, same.weight = same.weight, nn.Parameter(torch.ones(4, 3))
        with pytest.raises(AdapterError, match="was resized after inject"):
            same(torch.ones(1, 3))
        same.weight = weight
        same(torch.ones(1, 3))
        seen: list[nn.Module] = []
        before_forward(same).always.append(seen.append)
        same.eval()(torch.ones(1, 3))
        assert not seen, "in train mode alone"
        same.train()(torch.ones(1, 3))
        assert seen == [same]
        before_forward(same).always.remove(seen.append)
    eject(model)
    assert not looks.always
    assert not model._forward_hooks
    inject(model, LoRAConfig(r=1))
    assert before_forward(model) is not looks


def test_a_layer_that_is_a_part_by_now_is_looked_at_once() -> None:
    layer, seen = nn.Linear(3, 3), list[nn.Module]()
    inject(layer, LoRAConfig(r=1))
    before_forward(layer).always.append(seen.append)
    model = nn.Sequential(layer)
    inject(model, LoRAConfig(r=1), "second")
    model(torch.ones(1, 3))
    assert seen == [layer]


@pytest.mark.parametrize(("training", "gradient"), [(True, True), (True, False), (False, True)])
def test_what_looks_at_training_sees_training_forwards_alone(training: bool, gradient: bool) -> None:
    model, seen = nn.Linear(3, 3).train(training), list[str]()
    looks = before_forward(model)
    looks.always.append(lambda module: seen.append("always"))

    def once(module: nn.Module) -> None:
        seen.append("training")
        looks.remove(once, module)

    looks.in_training.append(once)
    with torch.set_grad_enabled(gradient):
        model(torch.ones(1, 3))
        model(torch.ones(1, 3))
    assert seen == ["always", *["training"] * (training and gradient), "always"]


def test_a_copy_looks_for_itself() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    inject(model, LoRAConfig(r=1))
    copy = deepcopy(model)
    mine, its = before_forward(model), before_forward(copy)
    assert isinstance(its, BeforeForward)
    assert its is not mine
    assert {id(look.__self__) for look in its.always}.isdisjoint(id(look.__self__) for look in mine.always)
    eject(copy)
    assert mine.always
    assert not its.always
    assert not [hook for hook in copy._forward_pre_hooks.values() if getattr(hook, "__self__", None) is its]
