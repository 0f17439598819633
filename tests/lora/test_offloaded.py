"""Tensors without data, or elsewhere: meta bases, accelerate's offload, `to_empty`, default devices and types."""

import copy

import accelerate
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter, swap_adapter
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, inject, merge, rename, trainable_parameters
from rounding import alike


class Standardised(nn.Linear):
    """Reads its weight otherwise than its class does, so that W + delta takes the weight's place."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)


class Net(nn.Module):
    """Every way an adapter acts: on an output, through the weight, for a tie."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.read = Standardised(8, 8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.conv(self.embed(ids).mT).mT
        x = x + self.read(x)
        return self.head(self.fc(x).tanh())


CONFIGS = {
    "lora": LoRAConfig(r=2, target_modules=["embed", "conv", "read", "fc"]),
    "dora": LoRAConfig(r=2, target_modules=["conv", "read", "fc"], variant="dora"),
    "whole": LoRAConfig(r=2, target_modules=["conv"], modules_to_save=["fc"], bias="all"),
    "tokens": LoRAConfig(r=2, target_modules=["conv"], trainable_tokens={"embed": [1, 3]}),
}


def ids():
    return torch.tensor([[1, 3, 5, 2], [0, 1, 7, 11]])


def offload_all(model, folder):
    return accelerate.cpu_offload(model, execution_device="cpu")


def offload_to_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device="cpu")


def offload_a_part(model, folder):
    devices = {"embed": "cpu", "head": "cpu", "conv": "disk", "read": "disk", "fc": "disk"}
    return accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("offload", [offload_all, offload_to_disk, offload_a_part])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("first", ["inject", "offload"])
def test_offloaded_models_compute_and_save_the_same(offload, kind, first, tmp_path):
    if offload is offload_a_part and kind == "tokens" and first == "inject":
        pytest.skip("accelerate takes a parameter without numbers (A of single rows) for a tied one")
    base = Net().eval()
    plain = copy.deepcopy(base)
    inject(plain, CONFIGS[kind])
    fill(trainable_parameters(plain))
    with torch.no_grad():
        outputs = plain(ids())
    save_adapter(plain, tmp_path / "plain")
    model = copy.deepcopy(plain if first == "inject" else base)
    offload(model, str(tmp_path / "offload"))
    if first == "offload":
        load_adapter(model, tmp_path / "plain")
    with torch.no_grad():
        torch.testing.assert_close(model(ids()), outputs)
    save_adapter(model, tmp_path / "offloaded")
    again = copy.deepcopy(base)
    load_adapter(again, tmp_path / "offloaded")
    with torch.no_grad():
        torch.testing.assert_close(again(ids()), outputs)


def test_an_offloaded_weight_cannot_be_merged():
    model = nn.Sequential(nn.Linear(4, 4))
    inject(model, LoRAConfig(r=2))
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(AdapterError, match='"0" can\'t be merged: its weight has no data'):
        merge(model)


def mlp(**where):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, **where), nn.ReLU(), nn.Linear(8, 2, **where))


def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("assign", [False, True])
def test_an_adapter_on_a_meta_base_acts_once_the_base_has_weights(assign):
    plain, model = mlp(), mlp(device="meta")
    base = copy.deepcopy(plain.state_dict())
    for one in (plain, model):
        inject(one, LoRAConfig(r=2))
        fill(trainable_parameters(one))
    assert model(x().to("meta")).is_meta
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(base, assign=assign)
    assert alike(model(x()), plain(x()))


@pytest.mark.parametrize("by_way_of_meta", [False, True])
def test_an_adapter_keeps_its_numbers_where_the_base_loses_them(by_way_of_meta):
    model = mlp()
    inject(model, LoRAConfig(r=2, modules_to_save=["2"], target_modules="0"))
    fill(trainable_parameters(model))
    before = [p.detach().clone() for p in trainable_parameters(model)]
    (model.to("meta") if by_way_of_meta else model).to_empty(device="cpu")
    assert all(map(torch.equal, trainable_parameters(model), before))
    assert all(p.requires_grad for p in trainable_parameters(model))


def test_casting_and_moving_still_do_what_they_say():
    model = mlp()
    inject(model, LoRAConfig(r=2))
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    assert {p.dtype for p in model.half().parameters()} == {torch.float16}


def test_what_has_no_data_cannot_be_trained_whole_nor_weigh_magnitudes():
    for settings in ({"modules_to_save": ["2"], "target_modules": "0"}, {"variant": "dora"}):
        with pytest.raises(AdapterError, match="has no data"):
            inject(mlp(device="meta"), LoRAConfig(r=2, **settings))


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "notebook"])
@pytest.mark.parametrize("default", ["device", "context", "type"])
def test_defaults_of_the_program_change_nothing(init, default):
    one, other = (nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 2)) for _ in range(2))
    config = LoRAConfig(r=2, target_modules=["0", "1"], init=init)
    inject(one, config)
    try:
        if default == "device":
            torch.set_default_device("meta")
        elif default == "type":
            torch.set_default_dtype(torch.float64)
        with torch.device("meta" if default == "context" else torch.get_default_device()):
            inject(other, config)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for a, b in zip(trainable_parameters(one), trainable_parameters(other), strict=True):
        assert (a.device, a.dtype) == (b.device, b.dtype)
        assert torch.equal(a, b)


@pytest.mark.parametrize("surroundings", [accelerate.init_empty_weights, torch.inference_mode])
def test_adapters_are_real_wherever_they_are_attached(surroundings, tmp_path):
    config = LoRAConfig(r=2, target_modules="0", modules_to_save=["2"], variant="dora")
    plain, fresh, loaded = mlp(), mlp(), mlp()
    inject(plain, config)
    fill(trainable_parameters(plain))
    save_adapter(plain, tmp_path)
    with surroundings():
        inject(fresh, config)
        load_adapter(loaded, tmp_path)
    with torch.no_grad():
        for one, other in zip(trainable_parameters(fresh), trainable_parameters(plain), strict=True):
            one.copy_(other)
    for model in (fresh, loaded):
        torch.testing.assert_close(model(x()), plain(x()))
        model(x()).sum().backward()


def test_fake_tensors_show_shapes_and_are_not_saved(tmp_path):
    model, fake = mlp(), mlp()
    inject(model, LoRAConfig(r=2))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model.train()(mode.from_tensor(x())).shape == (3, 2)
        inject(fake, LoRAConfig(r=2))
        checkpoint(fake, mode.from_tensor(x()), use_reentrant=False).sum().backward()
    model(x()).sum().backward()
    with pytest.raises(AdapterError, match='has no numbers at "0": it was attached in a fake mode'):
        save_adapter(fake, tmp_path)


def test_numbers_that_lie_elsewhere_are_neither_replaced_nor_renamed(tmp_path):
    model = mlp()
    inject(model, LoRAConfig(r=2))
    save_adapter(model, tmp_path)
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(AdapterError, match="so they can't be replaced in place"):
        swap_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="Rename it before offloading"):
        rename(model, "default", "new")
