"""A base that changes after training began: what an adapter's file can't hold is refused or said, never left out."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm
from torch.optim.swa_utils import update_bn

import rankwise.lora.base.buffers
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.errors import AdapterError, AdapterFileError
from rankwise.lora import LoRAConfig, eject, inject, merge, unmerge
from rankwise.lora.base.samples import remember_base
from rounding import alike


def x(n=16):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1


def train(model):
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        model(x()).square().mean().backward()
        optimiser.step()
    return model.eval()


class Offset(nn.Module):
    """A mean that follows the inputs: in a parameter, or in a buffer that a checkpoint has or hasn't."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        if kind == "parameter":
            self.offset = nn.Parameter(torch.zeros(4))
        else:
            self.register_buffer("offset", torch.zeros(4), persistent=kind == "buffer")

    def forward(self, x):
        x = self.norm(self.fc(x))
        if self.training:
            self.offset.data.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.offset


def test_a_parameter_that_a_forward_writes_to_is_not_saved_as_if_it_were_the_bases(tmp_path):
    model = Offset("parameter")
    inject(model, LoRAConfig(r=2))
    train(model)
    with pytest.raises(AdapterError, match='The base\'s "offset" has changed since training began'):
        save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match='"offset" has changed'):
        save_adapter(model, tmp_path, strict=False)


def test_what_a_user_unfreezes_is_said_before_training_and_refused_at_saving(tmp_path):
    model = Offset("buffer")
    inject(model, LoRAConfig(r=2))
    model.norm.requires_grad_(True)
    with pytest.warns(UserWarning, match='The base\'s "norm.weight" and 1 more asks for gradients'):
        train(model)
    with pytest.raises(AdapterError, match=r'"norm.weight" and 1 more has changed since training began'):
        save_adapter(model, tmp_path)


def test_casting_merging_and_loading_change_no_base(tmp_path):
    model, other = Offset("buffer"), Offset("buffer")
    other.fc.weight.data.mul_(2)
    inject(model, LoRAConfig(r=2))
    train(model)
    checkpoint = {key: value.clone() for key, value in model.state_dict().items()}
    merge(model)
    save_adapter(model, tmp_path)
    unmerge(model)
    model.load_state_dict(checkpoint)  # of the same training run
    save_adapter(model, tmp_path)
    model.load_state_dict(other.state_dict())  # another base
    save_adapter(model, tmp_path)
    save_adapter(model.double(), tmp_path)
    save_adapter(model.half(), tmp_path)


def test_a_buffer_that_no_checkpoint_holds_is_said(tmp_path):
    model = Offset("fleeting")
    inject(model, LoRAConfig(r=2))
    train(model)
    with pytest.warns(UserWarning, match='"offset" has changed since training began. It is in no checkpoint'):
        save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match="eject can't restore it"):
        eject(model)


def test_a_buffer_too_large_to_be_copied_is_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(rankwise.lora.base.buffers, "LARGEST", 8)
    model, fresh = Offset("buffer"), Offset("buffer").eval()
    inject(model, LoRAConfig(r=2))
    train(model)
    load_adapter(fresh, save_adapter(model, tmp_path))
    assert alike(fresh(x()), model(x()))
    with pytest.warns(UserWarning, match="larger than 64 MiB"):
        eject(model)


def test_vectors_of_an_adapted_layers_spectral_norm_are_in_the_file(tmp_path):
    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), spectral_norm(nn.Linear(8, 4))).eval()

    model, fresh = base(), base()
    inject(model, LoRAConfig(r=2))
    train(model)
    load_adapter(fresh, save_adapter(model, tmp_path))
    assert alike(fresh(x()), model(x()))


def normed(momentum=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.Linear(8, 2))
    model(x())
    return model.eval()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_that_are_reset_come_back_with_an_error(momentum):
    model = normed(momentum)
    inject(model, LoRAConfig(r=2))
    outputs = train(model)(x())
    with pytest.raises(AdapterError, match='The statistics of "1" were reset'):
        update_bn([x()], model)
    assert alike(model.eval()(x()), outputs)
    assert model[1].momentum == momentum
    model.load_state_dict({**model.state_dict(), "1.running_mean": torch.ones(8)})  # other ones are no reset
    train(model)
    assert torch.equal(model[1].running_mean, torch.ones(8))


def test_a_part_of_the_base_is_another_base_and_a_larger_one_is_named(tmp_path):
    def blocks(n):
        torch.manual_seed(0)
        return nn.ModuleDict({"blocks": nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)))})

    model = blocks(3)
    inject(model, LoRAConfig(r=2, target_modules=["blocks.0", "blocks.1"]))
    save_adapter(model, tmp_path)
    with pytest.raises(AdapterFileError, match=r'saved over a base with "blocks.2.weight", which this model lacks'):
        load_adapter(blocks(2), tmp_path)
    assert "which this model lacks" in load_adapter(blocks(2), tmp_path, strict=False).findings[0]
    (note,) = load_adapter(blocks(4), tmp_path).notes
    assert 'has 2 parameters that the base lacked when the adapter was saved ("blocks.3.weight")' in note
    assert load_adapter(blocks(3), tmp_path).notes == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_of_a_large_weight_that_was_written_to_is_seen(dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"tokens": nn.Embedding(999, 7, dtype=dtype), "fc": nn.Linear(4, 4)})
    inject(model, LoRAConfig(r=2, target_modules="fc"))
    remember_base(model)
    save_adapter(model, tmp_path)
    model["tokens"].weight.data[500, 3] *= 2
    with pytest.raises(AdapterError, match=r'"tokens\.weight" has changed since training began'):
        save_adapter(model, tmp_path)


class Scheduled(nn.Module):
    """A layer whose slope follows a count of its training forwards."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.steps, self.longest = nn.Linear(4, 4), 0, 0

    def forward(self, x):
        self.steps += self.training
        self.longest = max(self.longest, len(x))
        return self.fc(x) * (1 + self.steps / 100)


def test_a_count_that_training_moves_is_said_at_saving(tmp_path):
    model = Scheduled()
    inject(model, LoRAConfig(r=2))
    save_adapter(model, tmp_path / "fresh")
    copied = copy.deepcopy(train(model))
    for one in (model, copied, pickle.loads(pickle.dumps(model))):
        with pytest.warns(UserWarning, match='The number "steps" of the model, a plain attribute, changes with each'):
            save_adapter(one, tmp_path)
    eject(model)
    assert not any("_rankwise" in key for key in vars(model))
