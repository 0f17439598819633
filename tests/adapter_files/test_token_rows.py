"""Rows of single tokens in files, both ways with the real PEFT, with tied and untied output heads."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from adapted_models import fill
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter, swap_adapter
from rankwise.errors import AdapterError, AdapterFileError, TargetError
from rankwise.lora import LoRAConfig, base_state_dict, eject, inject, merge, trainable_parameters, unmerge
from rankwise.sweeps.candidates.warm_start import read_start
from rounding import alike

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


# An enlarged vocabulary


def gpt2(tied):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied)
    ).eval()


FAMILIES = {"llama": (llama, "q_proj", "embed_tokens"), "gpt2": (gpt2, "c_attn", "wte")}
WAYS = {
    "nothing else": {},
    "all new tokens": {"trainable_token_indices": [20, 21, 22]},
    "some of them": {"trainable_token_indices": [21, 3]},
    "the embedding": {"embedding": True},
}


@pytest.fixture
def enlarged(tmp_path):
    """Make a base on disk, and return a function for the model with three more tokens, drawn from a seed."""

    def make(family, tied, seed, size=23):
        folder = tmp_path / "base"
        if not folder.exists():
            FAMILIES[family][0](tied).save_pretrained(folder)
        model = type(FAMILIES[family][0](tied)).from_pretrained(folder).eval()
        torch.manual_seed(seed)
        model.resize_token_embeddings(size, mean_resizing=False)
        return model

    return make


def of_all_tokens(model):
    with torch.no_grad():
        return model(torch.arange(23).view(1, 23)[:, -16:])[0]


def peft_settings(family, way):
    _, target, embedding = FAMILIES[family]
    settings = dict(WAYS[way])
    more = [embedding] if settings.pop("embedding", False) else []
    return LoraConfig(r=2, target_modules=[target, *more], **settings)


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
class TestEnlarged:
    def test_ours_runs_pefts_file(self, family, tied, way, enlarged, tmp_path):
        wrapped = get_peft_model(enlarged(family, tied, 1), peft_settings(family, way)).eval()
        fill(p for name, p in wrapped.named_parameters() if p.requires_grad)
        wrapped.save_pretrained(str(tmp_path / "theirs"))
        model = enlarged(family, tied, 2)
        load_adapter(model, tmp_path / "theirs")
        rows = slice(0, 20) if way == "the embedding" and family == "llama" else slice(None)
        torch.testing.assert_close(
            of_all_tokens(model)[..., rows], of_all_tokens(wrapped)[..., rows], rtol=0, atol=1e-5
        )
        trained = sum(p.numel() for p in trainable_parameters(model))
        assert trained == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        with pytest.raises(AdapterFileError, match=r"resize_token_embeddings\(23\)"):
            load_adapter(enlarged(family, tied, 2, size=20), tmp_path / "theirs")

    def test_ours_comes_back_over_other_new_rows_here_and_in_peft(self, family, tied, way, enlarged, tmp_path):
        model = enlarged(family, tied, 1)
        inject(model, LoRAConfig.from_peft(peft_settings(family, way)))
        fill(trainable_parameters(model))
        save_adapter(model, tmp_path / "ours")
        again = enlarged(family, tied, 2)
        load_adapter(again, tmp_path / "ours")
        torch.testing.assert_close(of_all_tokens(again), of_all_tokens(model), rtol=0, atol=1e-5)
        theirs = PeftModel.from_pretrained(enlarged(family, tied, 3), str(tmp_path / "ours")).eval()
        torch.testing.assert_close(of_all_tokens(theirs), of_all_tokens(model), rtol=0, atol=1e-5)
        save_adapter(again, tmp_path / "again")
        assert tensors(tmp_path / "again").keys() == tensors(tmp_path / "ours").keys()
        last = enlarged(family, tied, 4)
        state = copy.deepcopy(last.state_dict())
        load_adapter(last, tmp_path / "again")
        wanted = of_all_tokens(last)
        torch.testing.assert_close(wanted, of_all_tokens(model), rtol=0, atol=1e-5)
        merge(last)
        torch.testing.assert_close(of_all_tokens(last), wanted, rtol=0, atol=1e-5)
        assert all(torch.equal(tensor, state[key]) for key, tensor in base_state_dict(last).items())
        unmerge(last)
        assert alike(of_all_tokens(last), wanted)
        eject(last)
        assert all(torch.equal(tensor, state[key]) for key, tensor in last.state_dict().items())


def test_embeddings_are_saved_where_they_are_needed(enlarged, tmp_path):
    def saved(model, **settings):
        inject(model, LoRAConfig(r=2, target_modules="q_proj", **settings))
        save_adapter(model, tmp_path / "adapter")
        return {key.removeprefix("base_model.model.") for key in tensors(tmp_path / "adapter") if ".lora_" not in key}

    delta, both = KEY.removeprefix("base_model.model."), {"model.embed_tokens.weight", "lm_head.weight"}
    assert saved(enlarged("llama", True, 1)) == both
    assert saved(enlarged("llama", True, 1, size=20)) == set()
    assert saved(enlarged("llama", True, 1), trainable_tokens=[20, 21, 22]) == {delta}
    assert saved(enlarged("llama", True, 1), modules_to_save=["embed_tokens", "lm_head"]) == both
    # Without the base's own configuration nothing says that the vocabulary was enlarged.
    assert saved(llama(True, 23)) == set()


def test_embeddings_are_saved_on_request(tmp_path):
    model = llama(False)
    inject(model, LoRAConfig(r=2, target_modules="q_proj"))
    save_adapter(model, tmp_path, save_embeddings=True)
    assert {"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"} <= tensors(tmp_path).keys()
    # The same as the base's: nothing is kept twice.
    again = llama(False)
    load_adapter(again, tmp_path)
    assert not any("lora_trained" in name for name, _ in again.named_modules())
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2))
    inject(plain, LoRAConfig(r=1))
    with pytest.raises(AdapterError, match="save_embeddings is for models of transformers"):
        save_adapter(plain, tmp_path, save_embeddings=True)


def test_a_pack_refuses_embeddings_that_it_would_train(enlarged, tmp_path):
    model = enlarged("llama", False, 1)
    inject(model, LoRAConfig(r=2, target_modules="q_proj"))
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match="of an enlarged vocabulary"):
        read_start(enlarged("llama", False, 2), tmp_path / "adapter")


def test_a_model_without_embeddings_is_saved_as_any_other(tmp_path):
    class Waves(torch.nn.Module):
        """As wav2vec2 answers, and a ViT."""

        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(2, 2)

        def get_input_embeddings(self):
            raise NotImplementedError

        def get_output_embeddings(self):
            return torch.nn.Identity()

    model = Waves()
    inject(model, LoRAConfig(r=1))
    load_adapter(model, save_adapter(model, tmp_path), "again")
    with pytest.raises(TargetError, match="it has none"):
        inject(model, LoRAConfig(r=1, trainable_tokens=[1]), "third")
