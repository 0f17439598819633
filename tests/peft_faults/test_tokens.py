"""Single rows of a Linear: peft 0.21.2 leaves out the layer's bias, here it is added."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM

from rankwise.adapter_files import load_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.arange(12).view(2, 6)


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=20, **sizes)).eval()
    with torch.no_grad():
        model.cls.predictions.bias.fill_(0.5)
    return model


@pytest.mark.parametrize("name", ["tied", "decoder"])
def test_the_bias_of_an_output_layer_whose_rows_are_trained(name, tmp_path):
    tokens = [1, 2] if name == "tied" else {"decoder": [1, 2]}
    theirs = get_peft_model(bert(), LoraConfig(target_modules=["query"], trainable_token_indices=tokens)).eval()
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model, base = bert(), bert()(IDS).logits
    with pytest.warns(UserWarning, match=r'"cls\.predictions\.decoder": PEFT 0\.21\.2 leaves out the bias'):
        load_adapter(model, tmp_path)
    # A fresh adapter changes nothing; peft's takes the bias away.
    torch.testing.assert_close(model(IDS).logits, base)
    torch.testing.assert_close(theirs(IDS).logits, base - 0.5)


def test_the_bias_is_found_in_the_file(tmp_path):
    settings = LoraConfig(target_modules=["query"], trainable_token_indices={"decoder": [1, 2]}, bias="lora_only")
    theirs = get_peft_model(bert(), settings).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter.fill_(0.25)
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = bert()
    with pytest.warns(UserWarning, match="leaves out the bias"):
        load_adapter(model, tmp_path)
    base = bert()
    base.bert.encoder.layer[0].attention.self.query.bias.data.fill_(0.25)
    torch.testing.assert_close(model(IDS).logits, base(IDS).logits)
