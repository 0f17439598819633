"""Wrapped models: torch.compile, activation checkpoints, DataParallel. Names are those of the plain model."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.optim.swa_utils import AveragedModel

from rankwise.adapter_files import load_adapter, save_adapter, save_merged
from rankwise.lora import LoRAConfig, adapter_tensors, base_state_dict, eject, inject, merge, unmerge
from rounding import alike

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2))


def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_layer(model):
    model[0][0] = torch.compile(model[0][0], backend="eager")
    return model


def checkpointed(model):
    model[0] = checkpoint_wrapper(model[0])
    return model


def nested(model):
    model[0] = torch.compile(checkpoint_wrapper(model[0]), backend="eager")
    return nn.DataParallel(model)


def offloaded(model):
    model[1] = offload_wrapper(model[1])
    return model


WRAPS = [compiled, compiled_layer, checkpointed, nested, offloaded, nn.DataParallel, AveragedModel]

COMPILED = [compiled, compiled_layer, nested]


def filled(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for pair in adapter_tensors(model).values():
            for tensor in pair:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("first", ["inject", "wrap"])
def test_names_and_functions_are_those_of_the_plain_model(wrap, first, tmp_path):
    plain, model = make(), make()
    settings = LoRAConfig(r=2, target_modules=["re:0.0|1"], bias="all")
    inject(plain, settings)
    filled(plain)
    if first == "inject":
        inject(model, settings)
        filled(model)
        model = wrap(model)
    else:
        model = wrap(model)
        inject(model, settings)
        filled(model)
    assert adapter_tensors(model).keys() == adapter_tensors(plain).keys()
    if wrap not in COMPILED:  # checks of types at run time don't compile
        torch.testing.assert_close(model(x()), plain(x()))
    assert base_state_dict(model).keys() == make().state_dict().keys()
    save_adapter(plain, tmp_path / "plain")
    save_adapter(model, tmp_path / "model")
    keys = [load_file(tmp_path / name / "adapter_model.safetensors").keys() for name in ("plain", "model")]
    assert keys[1] == keys[0]
    base = make()
    load_adapter(base, tmp_path / "model")
    torch.testing.assert_close(base(x()), plain(x()))
    save_merged(model, tmp_path / "merged")
    merged = make()
    merged.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    torch.testing.assert_close(merged(x()), plain(x()))
    merge(model)
    unmerge(model)
    eject(model)
    if wrap not in COMPILED:
        torch.testing.assert_close(model(x()), make()(x()))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("word", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("place", ["before", "inside"])
def test_files_with_the_words_of_wrappers_load(word, place, tmp_path):
    model = make()
    inject(model, LoRAConfig(r=2))
    save_adapter(filled(model), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    prefix = "base_model.model."
    new = word + prefix if place == "before" else prefix + word
    save_file({key.replace(prefix, new): tensor for key, tensor in load_file(path).items()}, path)
    base = make()
    load_adapter(base, tmp_path)
    assert alike(base(x()), model(x()))


def test_a_module_called_module_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(4, 4)})
    inject(model, LoRAConfig(r=2))
    assert list(adapter_tensors(model)) == ["module"]
    load_adapter(copy.deepcopy(nn.ModuleDict({"module": model["module"]})), save_adapter(model, tmp_path), "again")
