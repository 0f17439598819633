"""Rows of single tokens in files, both ways with the real PEFT, with tied and untied output heads."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapted_models import fill
from rankwise.errors import AdapterError, AdapterFileError
from rankwise.files import load_adapter, read_adapter, save_adapter, swap_adapter
from rankwise.lora import LoRAConfig, eject, inject, trainable_parameters

# PEFT calls what transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TOKENS = [17, 3]
KEY = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
CASES = [
    (False, TOKENS),
    (True, TOKENS),
    (False, {"embed_tokens": TOKENS, "lm_head": [4, 1, 9]}),
    (True, {"embed_tokens": TOKENS, "lm_head": TOKENS}),
    (False, {"lm_head": TOKENS}),
]


def llama(tied, vocabulary=20):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def outputs(model):
    with torch.no_grad():
        return model(torch.arange(1, 19).view(2, 9))[0]


def theirs(model, tokens, **settings):
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=tokens, **settings)
    wrapped = get_peft_model(model, config).eval()
    fill(p for name, p in wrapped.named_parameters() if p.requires_grad)
    return wrapped


def ours(model, tokens, **settings):
    inject(model, LoRAConfig(r=2, target_modules="q_proj", trainable_tokens=tokens, **settings))
    fill(trainable_parameters(model))
    return model


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("tied", "tokens"), CASES)
def test_ours_runs_pefts_and_writes_its_keys(tied, tokens, tmp_path):
    wrapped = theirs(llama(tied), tokens)
    wrapped.save_pretrained(str(tmp_path))
    model = llama(tied)
    before = copy.deepcopy(model.state_dict())
    load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model), outputs(wrapped), rtol=0, atol=1e-6)
    save_adapter(model, tmp_path / "again")
    again, first = tensors(tmp_path / "again"), tensors(tmp_path)
    assert again.keys() == first.keys()
    for key in first:
        torch.testing.assert_close(again[key], first[key], rtol=0, atol=1e-7)
    eject(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("tied", "tokens"), CASES)
def test_peft_runs_ours(tied, tokens, tmp_path):
    model = ours(llama(tied), tokens)
    save_adapter(model, tmp_path)
    wrapped = PeftModel.from_pretrained(llama(tied), str(tmp_path))
    torch.testing.assert_close(outputs(wrapped), outputs(model), rtol=0, atol=1e-6)


def test_rows_and_the_low_rank_part_come_back(tmp_path):
    model = ours(llama(True), TOKENS, variant="dora")
    save_adapter(model, tmp_path)
    again = llama(True)
    load_adapter(again, tmp_path)
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=1e-6)
    wrapped = PeftModel.from_pretrained(llama(True), str(tmp_path))
    torch.testing.assert_close(outputs(wrapped), outputs(model), rtol=0, atol=1e-6)


def test_the_trained_rows_come_back_over_other_rows_of_new_tokens(tmp_path):
    model = llama(True)
    model.resize_token_embeddings(23, mean_resizing=False)
    ours(model, [20, 21, 22])
    save_adapter(model, tmp_path)
    again = llama(True)
    torch.manual_seed(5)
    again.resize_token_embeddings(23, mean_resizing=False)
    load_adapter(again, tmp_path)
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=1e-6)
    rows = torch.tensor([[20, 21, 22]])
    torch.testing.assert_close(again(rows)[0], model(rows)[0], rtol=0, atol=1e-6)


def test_a_smaller_vocabulary_is_one_error_with_the_cause(tmp_path):
    model = llama(False)
    model.resize_token_embeddings(23, mean_resizing=False)
    save_adapter(ours(model, [20, 22]), tmp_path)
    with pytest.raises(AdapterFileError, match=r"Token 20 .*rows 0 to 19.*resize_token_embeddings\(23\) first"):
        load_adapter(llama(False), tmp_path)


def test_from_peft_takes_tokens_over():
    fields = {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": TOKENS}
    assert LoRAConfig.from_peft(fields).trainable_tokens == TOKENS
    fields["trainable_token_indices"] = {"embed_tokens": TOKENS}
    model = llama(False)
    report = inject(model, LoRAConfig.from_peft(fields))
    assert [t.layer_type.tokens for t in report.adapted if t.name == "model.embed_tokens"] == [tuple(TOKENS)]


def changed(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture
def written(tmp_path):
    theirs(llama(False), TOKENS).save_pretrained(str(tmp_path))
    return tmp_path


def test_missing_rows_are_found(written):
    flat = tensors(written)
    del flat[KEY]
    save_file(flat, written / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=f'no "{KEY}", which trainable_token_indices announces'):
        load_adapter(llama(False), written)


def test_rows_of_another_width_are_found(written):
    flat = tensors(written)
    flat[KEY] = torch.ones(2, 5)
    save_file(flat, written / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r"has shape \(2, 5\).*needs \(2, 16\)"):
        load_adapter(llama(False), written)


@pytest.mark.parametrize("tokens", [None, [], [3, 3], {"lm_head": [3]}])
def test_tokens_that_dont_fit_their_rows_are_found(written, tokens):
    changed(written, trainable_token_indices=tokens)
    with pytest.raises(AdapterFileError, match=r"trainable_tokens|trainable_token_indices"):
        load_adapter(llama(False), written)


def test_another_layer_is_found(written):
    flat = tensors(written)
    flat["base_model.model.model.embed.token_adapter.trainable_tokens_delta"] = flat.pop(KEY)
    save_file(flat, written / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r'"model\.embed", which the model lacks.*Did you mean'):
        load_adapter(llama(False), written)


def test_a_weight_with_both_is_found(tmp_path):
    theirs(llama(False), TOKENS).save_pretrained(str(tmp_path))
    flat = tensors(tmp_path)
    flat["base_model.model.lm_head.lora_A.weight"] = torch.ones(2, 16)
    flat["base_model.model.lm_head.lora_B.weight"] = torch.ones(20, 2)
    save_file(flat, tmp_path / "adapter_model.safetensors")
    load_adapter(llama(False), tmp_path)
    with pytest.raises(AdapterFileError, match="one weight here"):
        load_adapter(llama(True), tmp_path)


def test_without_a_model_tokens_are_refused(written):
    with pytest.raises(AdapterFileError, match="rows of single tokens, which only load_adapter"):
        read_adapter(written)


def test_a_file_takes_the_place_of_an_adapter_with_the_same_tokens(tmp_path):
    model = ours(llama(True), TOKENS)
    wanted = outputs(model)
    save_adapter(model, tmp_path)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.zero_()
    swap_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model), wanted, rtol=0, atol=1e-6)
    other = ours(llama(True), [1, 2])
    with pytest.raises(AdapterError, match="other tokens"):
        swap_adapter(other, tmp_path)
