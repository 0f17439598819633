"""Other tools around an injected model: peft's layers, sharding, diverged training, first forwards."""

import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter, save_merged
from rankwise.errors import AdapterError, AdapterFileError
from rankwise.lora import LoRAConfig, activate, inject, merge, trainable_parameters
from rounding import alike


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "settings",
    [
        peft.LoraConfig(r=2, target_modules=["0"]),
        peft.LoraConfig(r=2, target_modules=["0"], use_dora=True),
        peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
        peft.VeraConfig(r=2, target_modules=["0"]),
    ],
)
def test_models_with_adapters_of_pefts_are_refused(settings, tmp_path):
    inject(model := make(), LoRAConfig(r=2))
    save_adapter(model, tmp_path)
    theirs = peft.get_peft_model(make(), settings)
    before = list(theirs.state_dict())
    for action in (lambda: inject(theirs, LoRAConfig(r=2)), lambda: load_adapter(theirs, tmp_path)):
        with pytest.raises(AdapterError, match=r"of peft, and its own A and B would be adapted. Take .* unload\(\)"):
            action()
    assert list(theirs.state_dict()) == before
    inject(theirs.unload(), LoRAConfig(r=2))


def test_a_model_that_peft_wraps_after_inject_is_not_saved_under_its_names(tmp_path):
    inject(model := make(), LoRAConfig(r=2))
    outputs = model(x())
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    assert alike(theirs(x()), outputs)
    for wrapped in (theirs, model):
        with pytest.raises(AdapterError, match='0" is a Linear of peft, put around the layer after inject'):
            save_adapter(wrapped, tmp_path)
        with pytest.raises(AdapterError, match=r"Take peft's adapters off first \(unload\(\)\)"):
            save_merged(wrapped, tmp_path / "merged")
    save_adapter(theirs.unload(), tmp_path)
    load_adapter(fresh := make(), tmp_path)
    assert alike(fresh(x()), outputs)


@pytest.mark.parametrize("freeze", [lambda m: m.requires_grad_(False), peft.prepare_model_for_kbit_training])
def test_a_new_adapter_that_is_frozen_after_inject_is_said(freeze):
    inject(model := make(), LoRAConfig(r=2))
    freeze(model)
    with pytest.warns(
        UserWarning, match="none of its parameters ask for gradients, so training leaves it without effect"
    ):
        model.train()(x().requires_grad_())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_an_adapter_sharded_by_fsdp2_is_saved_whole(process, variant, tmp_path):
    model = make()
    inject(model, LoRAConfig(r=2, variant=variant, target_modules="0", modules_to_save=["2"]))
    fill(trainable_parameters(model))
    outputs = model(x()).detach()
    fully_shard(model, mesh=process)
    base = make()
    load_adapter(base, save_adapter(model, tmp_path))
    assert alike(base(x()), outputs)
    with pytest.raises(AdapterError, match="is sharded over processes"):
        merge(model)
    with pytest.raises(AdapterError, match="is sharded over processes"):
        inject(model, LoRAConfig(r=2), "second")


def trained(model):
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model.train()(x()).square().mean().backward()
        optimiser.step()
    return model


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_sharded_by_fsdp2_trains_as_one_that_is_not(process, tmp_path):
    plain, model, base = make(), make(), make()
    for one in (plain, model):
        inject(one, LoRAConfig(r=2))
    fully_shard(model, mesh=process)
    load_adapter(base, save_adapter(trained(model), tmp_path))
    torch.testing.assert_close(base(x()), trained(plain)(x()))


def test_saving_leaves_the_memory_of_the_base_resizable(tmp_path):
    inject(model := make(), LoRAConfig(r=2))
    save_adapter(model, tmp_path)
    assert all(p.untyped_storage().resizable() for p in model.parameters())  # FSDP frees what it has gathered


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_is_refused_or_saved_with_its_parameters_summoned(process, tmp_path):
    model = make()
    inject(model, LoRAConfig(r=2))
    fill(trainable_parameters(model))
    outputs = model(x()).detach()
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    with pytest.raises(AdapterError, match="Inject first, then wrap"):
        inject(wrapped, LoRAConfig(r=2), "second")
    whole = model[0].lora.A["default"].data
    model[0].lora.A["default"].data = whole.flatten()  # as on one process of several
    with pytest.raises(AdapterError, match=r"sharded by FullyShardedDataParallel. Save inside"):
        save_adapter(wrapped, tmp_path)
    model[0].lora.A["default"].data = whole
    with FullyShardedDataParallel.summon_full_params(wrapped):
        save_adapter(wrapped, tmp_path)
    base = make()
    load_adapter(base, tmp_path)
    assert alike(base(x()), outputs)


@pytest.mark.parametrize("kind", ["two", "none active", "trained in full"])
def test_ddp_waits_for_no_gradient_of_an_adapter_that_does_not_act(process, kind):
    model = make()
    whole = {"modules_to_save": ["2"], "target_modules": "0"} if kind == "trained in full" else {}
    inject(model, LoRAConfig(r=2, **whole), "first")
    inject(model, LoRAConfig(r=2), "second")
    if kind == "none active":
        activate(model, "first")
    wrapped = DistributedDataParallel(model)
    for _ in range(3):
        wrapped(x()).sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["A", "B", "magnitude", "whole"])
def test_numbers_that_are_not_finite_are_not_saved(value, where, tmp_path):
    model = make()
    inject(model, LoRAConfig(r=2, variant="dora", target_modules="0", modules_to_save=["2"]))
    tensor = {
        "A": model[0].lora.A["default"],
        "B": model[0].lora.B["default"],
        "magnitude": model[0].lora.magnitude["default"],
        "whole": model[2].lora_trained.own["default"].weight,
    }[where]
    tensor.data.view(-1)[0] = value
    with pytest.raises(AdapterError, match=r"not finite .* training diverged"):
        save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match="not finite"):
        save_adapter(model, tmp_path, strict=False)
    if where != "whole":
        with pytest.raises(AdapterFileError, match="not finite"):
            load_adapter(make(), tmp_path)


class Reads(nn.Module):
    """Reads a weight without calling its layer, draws random numbers, and counts its forwards."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.mean(0))
        self.calls = self.calls + 1
        noise = torch.rand(4)
        return nn.functional.linear(x + noise, self.fc.weight) - self.mean


def test_a_first_forward_that_runs_again_moves_everything_once():
    torch.manual_seed(0)
    one, other = Reads(), Reads()
    other.load_state_dict(one.state_dict())
    inject(one, LoRAConfig(r=2))
    results = []
    for model in (one, other):
        torch.manual_seed(3)
        results.append((model(x()), model.mean, model.calls, torch.rand(2)))
    assert one.fc.lora.has_reader
    (outputs, *moved), (expected, *other_moved) = results
    torch.testing.assert_close(outputs, expected)
    assert all(torch.equal(a, b) for a, b in zip(moved, other_moved, strict=True))
