"""`state_dict()` at any moment: while merged, with shared adapters, and with adapters that don't act."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from adapted_models import fill
from rankwise.errors import AdapterError
from rankwise.lora import (
    LoRAConfig,
    activate,
    count_parameters,
    disabled,
    inject,
    merge,
    rename,
    trainable_parameters,
    unmerge,
)
from rounding import alike


def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """An embedding and a head with one weight, and a layer under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.again = self.body
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.again(self.body(x @ self.embed(torch.arange(4))).tanh()))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 6, 1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 2))


CASES = {
    "plain": (plain, LoRAConfig(r=2), lambda model: model(x())),
    "trained in full": (plain, LoRAConfig(r=2, target_modules="0", modules_to_save=["2"]), lambda model: model(x())),
    "biases": (plain, LoRAConfig(r=2, bias="all"), lambda model: model(x())),
    "dora": (plain, LoRAConfig(r=2, variant="dora"), lambda model: model(x())),
    "tied": (Tied, LoRAConfig(r=2, target_modules=["embed", "body"]), lambda model: model(x())),
    "convolution": (normed, LoRAConfig(r=2, target_modules=["0", "3"]), lambda model: model(x().unsqueeze(-1))),
    "attention": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)).eval(),
        LoRAConfig(r=2, target_modules=["self_attn", "linear1"]),
        lambda model: model(x().unsqueeze(0)),
    ),
}


def injected(base, config):
    model = copy.deepcopy(base)
    inject(model, config)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_taken_while_merged_loads_as_what_it_was(case):
    make, config, run = CASES[case]
    base = make()
    model = injected(base, config)
    fill(trainable_parameters(model))
    outputs, before = run(model), copy.deepcopy(model.state_dict())
    merge(model)
    checkpoint = copy.deepcopy(model.state_dict())
    unmerge(model)
    for other in (injected(base, config), model):
        other.load_state_dict(checkpoint)
        torch.testing.assert_close(run(other), outputs)
        after = other.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
    merged = copy.deepcopy(base)
    merged.load_state_dict(checkpoint, strict=False)
    torch.testing.assert_close(run(merged), outputs, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_without_the_bases_weight_is_refused():
    model = injected(plain(), LoRAConfig(r=2))
    merge(model, keep_base=False)
    with pytest.raises(RuntimeError, match=r'"0.weight" was saved while merged, without the base'):
        injected(plain(), LoRAConfig(r=2)).load_state_dict(model.state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_a_shared_adapter_is_in_a_checkpoint_once_and_stays_shared(assign):
    config = LoRAConfig(r=2, target_modules=["embed", "body"])
    model, other = injected(Tied(), config), injected(Tied(), config)
    fill(trainable_parameters(model))
    state = model.state_dict()
    storages = [tensor.data_ptr() for key, tensor in state.items() if ".lora." in key and not key.startswith("again")]
    assert len(storages) == len({*storages})
    other.load_state_dict(copy.deepcopy(state), assign=assign)
    assert alike(other(x()), model(x()))
    assert other.head.lora.A["default"] is other.embed.lora.A["default"]
    rename(other, "default", "new")
    assert ".new" in next(key for key in other.state_dict() if "embed.lora.A" in key)


def test_models_of_transformers_with_shared_adapters_are_saved(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=2, tie_word_embeddings=True, **sizes))
    inject(model, LoRAConfig(r=2, target_modules=["lm_head", "q_proj"]))
    model.save_pretrained(tmp_path / "unmerged")
    merge(model)
    model.save_pretrained(tmp_path / "merged")


def test_adapters_that_do_not_act_ask_for_no_gradient_and_lose_none_of_their_parameters():
    model = plain()
    inject(model, LoRAConfig(r=2, modules_to_save=["2"], target_modules="0"), "first")
    first = trainable_parameters(model, "first")
    frozen = first[0].requires_grad_(False)  # the user's choice, which switching keeps
    inject(model, LoRAConfig(r=2), "second")
    asking = {id(p) for p in model.parameters() if p.requires_grad}
    assert asking == {id(p) for p in trainable_parameters(model, "second")}
    assert count_parameters(model, "first") == 2 * (4 + 8) + 8 * 2 + 2
    activate(model, "first")
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in first} - {id(frozen)}
    activate(model)
    assert not any(p.requires_grad for p in model.parameters())
    activate(model, "second")
    assert {id(p) for p in model.parameters() if p.requires_grad} == asking


class Recomputing(nn.Module):
    """Runs its layer again in the backward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.called = nn.Linear(4, 4)

    def forward(self, x):
        return checkpoint(lambda x: self.called(x).tanh(), x, use_reentrant=False)


@pytest.mark.parametrize("change", [lambda model: activate(model, "first"), activate])
def test_adapters_switched_before_a_recomputing_backward_are_noticed(change):
    model = Recomputing()
    for name in ("first", "second"):
        inject(model, LoRAConfig(r=2, target_modules="called"), name)
    fill(trainable_parameters(model, "second"))
    loss = model(x()).sum()
    change(model)
    with torch.no_grad():
        model(x())
    with pytest.raises(AdapterError, match="runs a layer again with the adapters"):
        loss.backward()
    activate(model, "second")
    model(x()).sum().backward()
    activate(model, "first")
    model(x()).sum().backward()


def test_disabled_before_a_recomputing_backward_is_noticed_and_a_reference_in_between_is_not():
    model = Recomputing()
    inject(model, LoRAConfig(r=2, target_modules="called"))
    loss = model(x()).sum()
    with disabled(model), torch.no_grad():
        model(x())
    loss.backward()
    loss = model(x()).sum()
    with disabled(model), pytest.raises(AdapterError, match="leave `disabled`, after backward"):
        loss.backward()
