"""Adapters that no gradient reaches are said after ten optimiser steps."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from rankwise.lora import LoRAConfig, adapter_tensors, eject, inject, trainable_parameters


class Detours(nn.Module):
    """Its second layer runs, but the output does not depend on it."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.ids = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(5, 4)

    def forward(self, x):
        self.unused(x)
        return self.used(x) + self.ids(torch.tensor([1]))


OPTIMISERS = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "one by one": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def made():
    model = Detours()
    inject(model, LoRAConfig(r=2, target_modules=["used", "unused", "ids"]))
    return model


def train(model, steps, accumulated=1, make=OPTIMISERS["SGD"]):
    optimiser = make(trainable_parameters(model))
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        for _ in range(accumulated):
            model(torch.ones(2, 4)).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_has_not_moved_is_said_after_ten_steps(name, accumulated):
    model = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, 10, accumulated, OPTIMISERS[name])
    with pytest.warns(UserWarning, match=r'After 10 optimiser steps 1 of 3 .* not moved: "unused"\. No gradient'):
        model(torch.ones(2, 4))
    assert len(model._forward_pre_hooks) == 1  # which looks at the structure


def test_evaluation_is_not_counted_and_copies_count_on():
    model = made()
    train(model, 6)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for counted in (model, twin):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(30):
                counted.eval()(torch.ones(2, 4))
            train(counted, 4)
        with pytest.warns(UserWarning, match="not moved"):
            train(counted, 1)


def test_where_all_moves_nothing_is_said():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    inject(model, LoRAConfig(r=2))
    train(model, 30)
    assert all(bool(B.any()) for _, B in adapter_tensors(model).values())
    assert len(model._forward_pre_hooks) == 1


def test_a_model_that_is_not_stepped_is_left_alone():
    model = made()
    for _ in range(1000):
        model(torch.ones(1, 4))
    assert len(model._forward_pre_hooks) == 1


def test_eject_stops_the_counting():
    model = made()
    train(model, 2)
    eject(model)
    assert not model._forward_pre_hooks
    assert model.__dict__.keys() == Detours().__dict__.keys()
