"""Models that are called causal and are not are refused."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from transformers import BertConfig, BertLMHeadModel, XLMConfig, XLMWithLMHeadModel, XLNetConfig, XLNetLMHeadModel

from rankwise.errors import ConfigError
from rankwise.tasks.text.model.causal import check_causal
from rankwise.tasks.text.model.models import load_text_model
from text_models import CONFIGS, VOCABULARY, make_model, make_tokenizer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind not in ("bert", "t5")])
def test_causal_models(kind: str) -> None:
    check_causal(make_model(kind), VOCABULARY, kind)


@pytest.mark.parametrize("decoder", [False, True])
def test_bert_as_a_decoder_or_not(decoder: bool) -> None:
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, is_decoder=decoder, **SHAPE)).eval()
    if decoder:
        check_causal(model, VOCABULARY, "bert")
    else:
        with pytest.raises(ConfigError, match='"bert" is a BertLMHeadModel whose outputs depend on later tokens'):
            check_causal(model, VOCABULARY, "bert")


def test_a_model_that_finds_padding_by_its_number() -> None:
    torch.manual_seed(0)
    config = XLMConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=1, n_heads=4, pad_index=2)
    with pytest.raises(ConfigError, match="XLMWithLMHeadModel whose outputs depend on later tokens"):
        check_causal(XLMWithLMHeadModel(config).eval(), VOCABULARY, "xlm")


def test_a_folder_of_such_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    XLNetLMHeadModel(XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=1, n_head=4, d_inner=48)).save_pretrained(
        tmp_path
    )
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="XLNetLMHeadModel whose outputs depend on later tokens"):
        load_text_model(tmp_path, "sft")
