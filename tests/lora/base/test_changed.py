"""The base is not what it was: layers replaced after inject, statistics and other buffers that training moves."""

import copy

import pytest
import torch
from torch import nn

from rankwise.adapter_files import load_adapter, save_adapter, save_merged
from rankwise.errors import AdapterError, AdapterFileError
from rankwise.lora import LoRAConfig, eject, inject, merge, unmerge
from rounding import alike


def x(n=16):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1


def train(model, steps=6):
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        model(x()).square().mean().backward()
        optimiser.step()
    return model.eval()


class Counted(nn.Module):
    """A counter, moved by assignment."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1
        return self.fc(x) / (1 + self.calls)


class Codebook(nn.Module):
    """Codes that follow the inputs, moved in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.eye(4))
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.fc(x)
        if self.training:
            with torch.no_grad():
                self.codes.mul_(0.9).add_(x.detach()[:4], alpha=0.1)
        return x @ self.codes


def model_of(kind):
    torch.manual_seed(0)
    norms = {
        "BatchNorm1d": lambda: nn.BatchNorm1d(4),
        "SyncBatchNorm's kin": lambda: nn.BatchNorm1d(4, momentum=None, affine=False),
        "InstanceNorm1d": lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
        ),
        "counter": Counted,
        "codebook": Codebook,
    }
    return nn.Sequential(nn.Linear(4, 4), norms[kind](), nn.Tanh(), nn.Linear(4, 2))


KINDS = ["BatchNorm1d", "SyncBatchNorm's kin", "InstanceNorm1d", "counter", "codebook"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_adapter_computes_the_same_after_training(kind, tmp_path):
    base = model_of(kind)
    model = copy.deepcopy(base)
    inject(model, LoRAConfig(r=2, target_modules=["re:0|3"]))
    train(model)
    other = copy.deepcopy(base).eval()
    assert load_adapter(other, save_adapter(model, tmp_path / "a")).findings == []
    assert alike(other(x()), model(x()))
    save_merged(model, tmp_path / "merged")


@pytest.mark.parametrize("kind", KINDS)
def test_eject_gives_the_base_back_after_training(kind):
    model = model_of(kind)
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    inject(model, LoRAConfig(r=2, target_modules=["re:0|3"]))
    train(model)
    eject(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert not any(name.startswith("_rankwise") for module in model.modules() for name in module.__dict__)


def test_normalisation_computes_as_in_eval_mode_and_keeps_its_mode():
    model = model_of("BatchNorm1d")
    report = inject(model.train(), LoRAConfig(r=2, target_modules=["re:0"]))
    assert report.frozen_statistics == ("1",)
    modes = []
    model[1].register_forward_hook(lambda module, args, output: modes.append(module.training))
    outputs = model(x())
    assert model[1].training
    assert alike(outputs, model.eval()(x()))


def test_a_failed_forward_leaves_the_mode_as_it_was():
    model = model_of("BatchNorm1d").train()
    inject(model, LoRAConfig(r=2, target_modules=["re:3"]))
    with pytest.raises(ValueError, match="expected 2D or 3D"):
        model[1](torch.zeros(2, 4, 1, 1))
    assert model[1].training


def test_statistics_of_a_layer_that_is_trained_whole_move_and_are_saved(tmp_path):
    base = model_of("BatchNorm1d")
    model = copy.deepcopy(base)
    inject(model, LoRAConfig(r=2, target_modules=["re:0"], modules_to_save=["1"]))
    train(model)
    assert not torch.equal(model[1].lora_trained.own["default"].running_mean, base[1].running_mean)
    assert torch.equal(model[1].running_mean, base[1].running_mean)
    other = copy.deepcopy(base).eval()
    load_adapter(other, save_adapter(model, tmp_path))
    assert alike(other(x()), model(x()))


def test_a_checkpoint_of_another_base_is_what_eject_leaves():
    model, other = model_of("codebook"), model_of("codebook")
    other[1].codes.mul_(2)
    inject(model, LoRAConfig(r=2, target_modules=["re:0"]))
    model.load_state_dict(other.state_dict())
    eject(model)
    assert torch.equal(model[1].codes, other[1].codes)


def test_a_checkpoint_of_training_keeps_what_the_base_was(tmp_path):
    base = model_of("codebook")
    one, other = copy.deepcopy(base), copy.deepcopy(base)
    for model in (one, other):
        inject(model, LoRAConfig(r=2, target_modules=["re:0"]))
    other.load_state_dict(train(one).state_dict())
    fresh = copy.deepcopy(base).eval()
    load_adapter(fresh, save_adapter(other, tmp_path))
    assert alike(fresh(x()), one(x()))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)


def replace_head(model):
    model.head = nn.Linear(4, 3)


def drop_block(model):
    del model.blocks[1]


def keep_every_other(model):
    model.blocks = model.blocks[::2]


def replace_inside(model):
    model.blocks[0] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


@pytest.mark.parametrize("change", [replace_head, drop_block, keep_every_other, replace_inside])
@pytest.mark.parametrize("modules_of_head", [False, True])
def test_a_lost_layer_is_missed_in_training_merging_and_saving(change, modules_of_head, tmp_path):
    model = Net()
    whole = {"modules_to_save": ["head"]} if modules_of_head else {}
    targets = ["blocks.0", "blocks.1", "blocks.2", *([] if modules_of_head else ["head"])]
    inject(model, LoRAConfig(r=2, target_modules=targets, **whole))
    model.eval()(x())
    change(model)
    for action in (lambda: merge(model), lambda: save_adapter(model, tmp_path), lambda: model.train()(x())):
        with pytest.raises(AdapterError, match=r'"default" was attached to .*no longer holds it'):
            action()
    with pytest.warns(UserWarning, match="no longer holds it"):
        save_adapter(model, tmp_path, strict=False)


def test_a_model_inside_another_and_out_of_it_again_has_lost_nothing(tmp_path):
    model = Net()
    inject(model, LoRAConfig(r=2))
    outer = nn.ModuleDict({"inner": model})
    save_adapter(outer, tmp_path / "outer")
    save_adapter(outer["inner"], tmp_path / "inner")
    merge(outer)
    unmerge(model)


@pytest.mark.parametrize("what", ["head.weight", "head.bias", "norm.running_mean", "scale"])
def test_another_base_is_told_apart_by_what_is_not_adapted(what, tmp_path):
    def make():
        model = Net()
        model.norm = nn.BatchNorm1d(4)
        model.scale = nn.Parameter(torch.ones(()))
        return model

    model = make()
    inject(model, LoRAConfig(r=2, target_modules=["blocks.0"]))
    save_adapter(model, tmp_path)
    other = make()
    with torch.no_grad():
        dict([*other.named_parameters(), *other.named_buffers()])[what].add_(1)
    with pytest.raises(AdapterFileError, match=f'"{what}" isn\'t what it was .* new head, drawn at random'):
        load_adapter(other, tmp_path)
    assert len(load_adapter(other, tmp_path, strict=False).findings) == 1
