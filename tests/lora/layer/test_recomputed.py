"""Adapters that are switched between a forward and its backward pass: gradients arrive, or an error says why not."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adapted_models import fill
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, activate, by_row, disabled, eject, inject, merge, rename, trainable_parameters
from rounding import alike


def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


class Reversible(torch.autograd.Function):
    """A block that keeps its input only, and runs again in the backward pass."""

    @staticmethod
    def forward(saved, x, block):
        saved.x, saved.block = x.detach(), block
        return block(x)

    @staticmethod
    def backward(saved, gradient):
        x = saved.x.requires_grad_()
        with torch.enable_grad():
            saved.block(x).backward(gradient)
        return x.grad, None


class Blocks(nn.Module):
    """Layers in a checkpoint, of one kind or the other, in a block of another making, or in none (None)."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.called, self.norm, self.reentrant = nn.Linear(4, 4), nn.LayerNorm(4), reentrant

    def run(self, x):
        return self.norm(torch.relu_(self.called(x)))

    def forward(self, x):
        if self.reentrant == "another":
            return Reversible.apply(x, self.run)
        return self.run(x) if self.reentrant is None else checkpoint(self.run, x, use_reentrant=self.reentrant)


CONFIGS = {
    "lora": LoRAConfig(r=2, target_modules="called"),
    "dora": LoRAConfig(r=2, target_modules="called", variant="dora"),
    "whole": LoRAConfig(r=2, target_modules="called", modules_to_save=["norm"]),
}


def two_adapters(reentrant, config="lora"):
    model = Blocks(reentrant)
    for name in ("first", "second"):
        inject(model, CONFIGS[config], name)
        fill(trainable_parameters(model, name))
    return model


def loss_of(model, name):
    activate(model, name)
    return model(x()).square().sum()


def gradients(model):
    return [p.grad for name in ("first", "second") for p in trainable_parameters(model, name)]


@pytest.mark.parametrize("config", CONFIGS)
def test_one_backward_for_the_losses_of_two_adapters_reaches_both(config):
    model, alone = two_adapters(None, config), two_adapters(None, config)
    for name in ("first", "second"):
        loss_of(alone, name).backward()
    wanted = [p.grad for name in ("first", "second") for p in trainable_parameters(alone, name)]
    (loss_of(model, "first") + loss_of(model, "second")).backward()
    torch.testing.assert_close(gradients(model), wanted)
    activate(model, "second")
    assert not any(p.requires_grad for p in trainable_parameters(model, "first"))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("reentrant", [False, True, "another"])
@pytest.mark.parametrize("config", CONFIGS)
def test_checkpoints_are_run_again_with_the_adapters_of_their_forward_or_refused(reentrant, config, mode):
    model, alone = (two_adapters(way, config).train(mode == "train") for way in (reentrant, None))
    first, second = loss_of(model, "first"), loss_of(model, "second")
    with disabled(model), torch.no_grad():
        model(x())
    second.backward()
    with pytest.raises(AdapterError, match=r"with the adapters \['second'\], which ran with \['first'\]"):
        first.backward()
    first = loss_of(model, "first")
    loss_of(model, "second")  # of no use: the order of forward passes doesn't matter
    activate(model, "first")
    first.backward()
    for name in ("first", "second"):
        loss_of(alone, name).backward()
    torch.testing.assert_close(gradients(model), gradients(alone))


def test_a_copy_made_inside_a_block_has_its_adapters():
    model = two_adapters(None, "whole").eval()
    outputs = model(x())
    with disabled(model):
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert all(alike(other(x()), outputs) for other in copies)
    model = two_adapters(None).eval()
    outputs = model(x())
    with torch.no_grad(), by_row(model, [None] * 5):
        other = copy.deepcopy(model)
    assert alike(other(x()), outputs)


@pytest.mark.parametrize("change", [lambda m: activate(m, "first"), merge, eject, lambda m: rename(m, "first", "new")])
def test_what_acts_cannot_be_changed_inside_by_row(change):
    model = two_adapters(None).eval()
    with torch.no_grad(), by_row(model, ["first"] * 5), pytest.raises(AdapterError, match="leave the block first"):
        change(model)


def test_an_adapter_renamed_while_it_does_not_act_can_be_activated():
    model = two_adapters(None, "whole")
    rename(model, "first", "new")
    activate(model, "new")
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trainable_parameters(model, "new")}
