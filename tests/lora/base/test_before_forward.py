"""The one hook before a model's forwards."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from rankwise import LoRAConfig, eject, inject
from rankwise.lora.base.before_forward import BeforeForward, before_forward


def test_all_that_looks_shares_one_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    inject(model, LoRAConfig(r=1))
    model(torch.ones(1, 3))  # the first forward is watched by hooks that then go
    (hook,) = model._forward_pre_hooks.values()
    assert hook.__self__ is before_forward(model)
    eject(model)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(("training", "gradient"), [(True, True), (True, False), (False, True)])
def test_what_looks_at_training_sees_training_forwards_alone(training: bool, gradient: bool) -> None:
    model, seen = nn.Linear(3, 3).train(training), list[str]()
    looks = before_forward(model)
    looks.always.append(lambda module: seen.append("always"))

    def once(module: nn.Module) -> None:
        seen.append("training")
        looks.remove(once)

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
