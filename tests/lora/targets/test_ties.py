"""Weights that several modules have: one adapter, used through every name; or a copy each."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.errors import AdapterError, TargetError
from rankwise.lora import (
    LoRAConfig,
    activate,
    adapter_tensors,
    base_state_dict,
    count_parameters,
    disabled,
    eject,
    inject,
    merge,
    unmerge,
)
from rounding import alike

# PEFT warns of what is held here to be right.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

IDS = torch.tensor([[1, 2, 3], [4, 0, 2]])


class Tied(nn.Module):
    """Token embedding and output head of one weight, and two linear layers of another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.up = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.again.weight = self.up.weight
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, ids):
        return self.head(self.again(self.up(self.embed(ids)).relu()))


def adapted(**settings):
    model = Tied()
    report = inject(model, LoRAConfig(r=2, **settings))
    fill(parameter for pair in adapter_tensors(model).values() for parameter in pair)
    return model, report


def merged_by_hand(model, name, delta):
    plain = Tied()
    with torch.no_grad():
        plain.get_parameter(f"{name}.weight").add_(delta)
    return plain(IDS)


@pytest.mark.parametrize("target", ["embed", "head", ["embed", "head"]])
def test_an_embedding_and_a_head_use_one_adapter_in_both(target):
    model, report = adapted(target_modules=target)
    base = Tied()(IDS)
    assert [(t.name, [(tie.name, tie.flipped) for tie in t.ties]) for t in report.adapted] == [
        ("embed", [("head", True)])
    ]
    assert 'the adapter of "embed" acts in "head" too, which has the same weight' in str(report)
    assert count_parameters(model) == report.trainable_parameters == 2 * (5 + 4)
    ((A, B),) = adapter_tensors(model).values()
    out = model(IDS)
    torch.testing.assert_close(out, merged_by_hand(model, "embed", 16.0 * (B @ A).mT))
    with disabled(model):
        assert alike(model(IDS), base)
    before = model.embed.weight.clone()
    merge(model)
    torch.testing.assert_close(model(IDS), out)
    assert model.head.weight is model.embed.weight
    assert torch.equal(base_state_dict(model)["head.weight"], before)
    unmerge(model)
    assert alike(model(IDS), out)
    eject(model)
    assert alike(model(IDS), base)
    assert list(model.state_dict()) == list(Tied().state_dict())


def test_linear_layers_of_one_weight():
    model, report = adapted(target_modules="all-linear")
    assert [(t.name, [(tie.name, tie.flipped) for tie in t.ties]) for t in report.adapted] == [
        ("embed", [("head", True)]),
        ("up", [("again", False)]),
    ]
    assert report.left_out == []
    assert model.up.lora.A["default"] is model.again.lora.A["default"]
    assert len({id(p) for p in model.parameters() if p.requires_grad}) == 4
    out = model(IDS)
    merge(model)
    torch.testing.assert_close(model(IDS), out)


def test_before_training_nothing_changes():
    model = Tied()
    base = model(IDS)
    inject(model, LoRAConfig(r=2))
    assert alike(model(IDS), base)


def test_patterns_reach_a_tied_target_by_any_name():
    _, report = adapted(target_modules="head", rank_pattern={"head": 3})
    assert report.adapted[0].r == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_tied(copied):
    model, _ = adapted()
    twin = copied(model)
    out = model(IDS)
    assert alike(twin(IDS), out)
    assert twin.up.lora.A["default"] is twin.again.lora.A["default"]
    merge(twin)
    torch.testing.assert_close(twin(IDS), out)


def test_several_adapters():
    model, _ = adapted(target_modules="embed")
    inject(model, LoRAConfig(r=1, target_modules="head"), "two")
    fill(next(iter(adapter_tensors(model, "two").values())))
    activate(model, "default", "two")
    out = model(IDS)
    merge(model)
    torch.testing.assert_close(model(IDS), out)
    unmerge(model)
    eject(model, "default")
    activate(model, "two")
    assert not alike(model(IDS), out)


def test_untied_each_has_a_weight_of_its_own_until_eject():
    model = Tied()
    base, shared = model(IDS), model.embed.weight
    report = inject(model, LoRAConfig(r=2, target_modules="head"), untie=True)
    assert report.adapted[0].ties == ()
    assert model.head.weight is not model.embed.weight
    assert alike(model(IDS), base)
    fill(adapter_tensors(model)["head"])
    out = model(IDS)
    merge(model)
    torch.testing.assert_close(model(IDS), out)
    assert torch.equal(model.embed.weight, shared)
    eject(model)
    assert model.head.weight is shared
    assert alike(model(IDS), base)


def test_untied_and_merged_for_good_stays_untied():
    model = Tied()
    inject(model, LoRAConfig(r=2, target_modules="head"), untie=True)
    fill(adapter_tensors(model)["head"])
    out = model(IDS)
    merge(model, keep_base=False)
    eject(model)
    torch.testing.assert_close(model(IDS), out)


def test_a_sharer_that_cannot_follow():
    class Reads(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    model["b"] = Reads(model["a"].weight)
    with pytest.raises(TargetError, match=r'"a" shares its weight with "b" \(Reads\), .* untie=True'):
        inject(model, LoRAConfig())
    inject(model, LoRAConfig(), untie=True)
    with pytest.raises(TargetError, match="exclude_modules names it"):
        inject(Tied(), LoRAConfig(target_modules="embed", exclude_modules="head"))


# Files


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(6)[None]).logits


def keys(folder):
    return set(load_file(folder / "adapter_model.safetensors"))


def test_a_saved_adapter_of_a_tied_weight_is_read_here_and_by_peft(tmp_path):
    model = llama()
    inject(model, LoRAConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    fill(parameter for pair in adapter_tensors(model).values() for parameter in pair)
    expected = logits(model)
    save_adapter(model, tmp_path)
    again = llama()
    report = load_adapter(again, tmp_path)
    assert [tie.name for target in report.adapted for tie in target.ties] == ["lm_head"]
    assert alike(logits(again), expected)
    merge(again)
    torch.testing.assert_close(logits(again), expected)
    theirs = PeftModel.from_pretrained(llama(), str(tmp_path))
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=1e-6)
    theirs.save_pretrained(str(tmp_path / "again"), save_embedding_layers=False)
    assert keys(tmp_path / "again") == keys(tmp_path)
    assert {"base_model.model.lm_head.lora_A.weight", "base_model.model.model.embed_tokens.lora_embedding_A"} <= keys(
        tmp_path
    )


def test_pefts_two_adapters_on_one_weight_run_and_merge_after_untying(tmp_path):
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head", "embed_tokens", "q_proj"]))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    expected = logits(theirs.eval())
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = llama()
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    save_adapter(model, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)
    with pytest.raises(AdapterError, match="has the same weight, but not the same adapters"):
        merge(model)
    model = llama()
    load_adapter(model, tmp_path, untie=True)
    merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)


def test_pefts_adapter_on_one_of_the_names_runs_and_merges_after_untying(tmp_path):
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head"]))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    expected = logits(theirs.eval())
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = llama()
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    with pytest.raises(AdapterError, match=r'"lm_head" can\'t be merged: "model\.embed_tokens" has the same'):
        merge(model)
    model = llama()
    load_adapter(model, tmp_path, untie=True)
    merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
