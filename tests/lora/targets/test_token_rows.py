"""Rows of single tokens: each adapter has its own, the base's stay; layers with the same weight see them."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from rankwise.errors import ConfigError, TargetError
from rankwise.lora import (
    LoRAConfig,
    activate,
    by_row,
    count_parameters,
    disabled,
    eject,
    inject,
    merge,
    rename,
    trainable_parameters,
    unmerge,
)
from rounding import alike

TOKENS = [17, 3]


def llama(tied, **settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, tie_word_embeddings=tied, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gemma():
    """Its embedding scales what it looks up, so its weight is replaced for the length of its forward; tied."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


MODELS = {"untied": lambda: llama(False), "tied": lambda: llama(True), "gemma": gemma}
IDS = torch.arange(1, 19).view(2, 9)


def outputs(model):
    with torch.no_grad():
        return model(IDS).logits


def config(tokens=TOKENS, **settings):
    return LoRAConfig(**{"r": 2, "target_modules": "q_proj", "trainable_tokens": tokens, **settings})


def filled(model, tokens=TOKENS, name="default", seed=0, **settings):
    inject(model, config(tokens, **settings), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model, name):
            parameter.normal_(std=0.5, generator=generator)
    return model


def with_rows(model, rows):
    """The model with rows added to those of its embedding, and the adapter's other parts left out."""
    with torch.no_grad():
        for token, row in rows.items():
            model.get_input_embeddings().weight[token] += row
    return model


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
class TestRows:
    def test_start_as_the_bases_bit_for_bit(self, make):
        model = make()
        wanted = outputs(model)
        inject(model, config())
        assert alike(outputs(model), wanted)

    def test_act_like_other_rows_in_the_weight(self, make):
        model = filled(make())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "q_proj" in name and ".lora." in name:
                    parameter.zero_()
        rows = model.get_input_embeddings().lora.B["default"].detach().T
        wanted = outputs(with_rows(make(), dict(zip(TOKENS, rows, strict=True))))
        torch.testing.assert_close(outputs(model), wanted, rtol=0, atol=1e-5)

    def test_leave_the_base_alone(self, make):
        model = make()
        before, state = outputs(model), copy.deepcopy(model.state_dict())
        filled(model)
        with disabled(model):
            assert alike(outputs(model), before)
        assert not alike(outputs(model), before)
        eject(model)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def test_are_written_by_merge_and_taken_back_exactly(self, make):
        model = filled(make())
        before, unmerged = copy.deepcopy(model.get_input_embeddings().weight), outputs(model)
        merge(model)
        torch.testing.assert_close(outputs(model), unmerged, rtol=0, atol=1e-5)
        changed = (model.get_input_embeddings().weight != before).any(1).nonzero().flatten().tolist()
        assert changed == sorted(TOKENS)
        unmerge(model)
        assert torch.equal(model.get_input_embeddings().weight, before)
        assert alike(outputs(model), unmerged)

    def test_get_the_gradients_of_peft(self, make):
        model, theirs = filled(make()), make()
        targets = LoraConfig(r=2, lora_alpha=32, target_modules=["q_proj"], trainable_token_indices=TOKENS)
        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            theirs = get_peft_model(theirs, targets)
        rows = next(p for name, p in theirs.named_parameters() if "trainable_tokens_delta" in name)
        pairs = dict(theirs.named_parameters())
        with torch.no_grad():
            rows += model.get_input_embeddings().lora.B["default"].T
            for letter in "AB":
                own = model.get_parameter(f"model.layers.0.self_attn.q_proj.lora.{letter}.default")
                key = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{letter}.default.weight"
                pairs[key].copy_(own)
        for one in (model, theirs):
            one(IDS, labels=IDS).loss.backward()
        found = model.get_input_embeddings().lora.B["default"].grad.T
        torch.testing.assert_close(found, rows.grad, rtol=1e-4, atol=1e-6)

    def test_survive_deepcopy_pickle_and_rename(self, make):
        model = filled(make())
        wanted = outputs(model)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert alike(outputs(other), wanted)
            with torch.no_grad():
                other.get_input_embeddings().lora.B["default"].zero_()
            assert not alike(outputs(other), wanted)
            assert alike(outputs(model), wanted)
        rename(model, "default", "french")
        assert alike(outputs(model), wanted)

    def test_of_several_adapters_are_each_ones_own(self, make):
        model = filled(filled(make(), name="one"), [3, 5, 7], "two", seed=1)
        alone = {"one": outputs(filled(make())), "two": outputs(filled(make(), [3, 5, 7], seed=1))}
        for name, wanted in alone.items():
            activate(model, name)
            assert alike(outputs(model), wanted)
        activate(model, "one", "two")
        both = outputs(model)
        merge(model)
        torch.testing.assert_close(outputs(model), both, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_each_row_of_a_batch_has_its_adapters_tokens(tied):
    model = filled(filled(llama(tied), name="one"), [3, 5, 7], "two", seed=1)
    wanted = []
    for i, name in enumerate(["two", "one"]):
        activate(model, name)
        wanted.append(outputs(model)[i])
    with torch.no_grad(), by_row(model, ["two", "one"], example=IDS):
        found = model(IDS).logits
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-5)


def test_untie_leaves_the_output_head_its_rows():
    model = llama(True)
    head = copy.deepcopy(model.lm_head.weight)
    inject(model, config(), untie=True)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    with torch.no_grad():
        model.model.embed_tokens.lora.B["default"].normal_()
    merge(model)
    assert torch.equal(model.lm_head.weight, head)


def test_dropout_and_dora_are_not_for_rows():
    model = filled(llama(True), dropout=0.9, variant="dora")
    wanted = outputs(model)
    model.lm_head.train()
    model.model.embed_tokens.train()
    assert alike(outputs(model), wanted)


def test_they_count_n_rows():
    model = llama(False)
    report = inject(model, config())
    assert count_parameters(model) == report.trainable_parameters == 2 * 16 + 2 * (16 + 16)
    assert "Embedding, token rows" in str(report)
    assert "2 x 16" in str(report)


@pytest.mark.usefixtures("compilable")
def test_a_compiled_model_has_them():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    inject(nn.Sequential(model, nn.Linear(8, 2)), LoRAConfig(target_modules="re:1", trainable_tokens={"0.0": [5, 2]}))
    with torch.no_grad():
        model[0].lora.B["default"].normal_()
    ids = torch.arange(8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(ids), model(ids), rtol=0, atol=1e-5)
    with disabled(model):
        assert torch.allclose(compiled(ids), model(ids), rtol=0, atol=1e-5)


def test_the_padding_row_gets_no_gradient():
    embed = nn.Embedding(8, 4, padding_idx=2)
    model = nn.Sequential(embed, nn.Linear(4, 3))
    inject(model, LoRAConfig(target_modules="1", trainable_tokens=[2, 5]))
    model(torch.tensor([[2, 5, 1]])).sum().backward()
    with torch.no_grad():
        model[1].lora.B["default"].normal_()
    model(torch.tensor([[2, 5, 1]])).sum().backward()
    gradient = embed.lora.B["default"].grad
    assert not gradient[:, 0].any()
    assert gradient[:, 1].any()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(8, 4), nn.Embedding(5, 4)
        self.fc, self.conv = nn.Linear(4, 8), nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, 8)
        self.head.weight = self.words.weight


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        ([1], {}, 'the one Embedding of the Two; it has "words", "places".*Name the layer'),
        ({"words": [8]}, {"exclude_modules": "head"}, r"rows 0 to 7.*resize_token_embeddings\(9\)"),
        ({"wrds": [1]}, {"exclude_modules": "head"}, 'No module matches trainable_tokens "wrds".*"words"'),
        ({"conv": [1]}, {"exclude_modules": "head"}, "has no row for each token"),
        ({"words": [1]}, {}, '"words" is a target of A and B.*exclude_modules="words"'),
        ({"words": [1], "head": [2]}, {"target_modules": "fc"}, "share one weight, .*different tokens"),
        ({"words": [1]}, {"target_modules": "fc", "modules_to_save": "words"}, "trained in full"),
    ],
)
def test_what_cant_be_trained_is_said(tokens, more, message):
    settings = {"target_modules": ["fc", "head"], **more}
    if "exclude_modules" in settings:
        settings = {"target_modules": "fc"}
    model = Two()
    with pytest.raises(TargetError, match=message):
        inject(model, LoRAConfig(trainable_tokens=tokens, **settings))
    assert not any("lora" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("tokens", [[3, 3], [-1], {"words": []}, [True]])
def test_tokens_are_numbers_each_once(tokens):
    with pytest.raises(ConfigError, match=r"trainable_tokens are .*numbers of tokens are needed, each once"):
        LoRAConfig(trainable_tokens=tokens)
