"""Layers whose class has its own forward: peft 0.21.2 adds to the output, here delta is added to the weight."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from adapted_models import fill
from rankwise.adapter_files import load_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge


class Standardised(nn.Conv1d):
    """As transformers' BiT has it: what acts is the kernel without its mean."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2), keepdim=True)
        return nn.functional.conv1d(x, weight, self.bias)


class Gained(nn.Conv1d):
    """As timm's NFNet: a gain beside the weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1), 2.0))

    def forward(self, x):
        return nn.functional.conv1d(x, self.gain * self.weight, self.bias)


X = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)).double()


def made(make):
    torch.manual_seed(0)
    return nn.Sequential(make()).double().eval()


def saved_by_peft(make, folder):
    theirs = get_peft_model(made(make), LoraConfig(r=2, lora_alpha=4, target_modules=["0"])).double().eval()
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(str(folder))
    return theirs


def test_the_weight_that_is_standardised_is_that_with_delta(tmp_path):
    model = made(lambda: Standardised(3, 4, 2))
    inject(model, LoRAConfig(r=2, alpha=4.0, target_modules="0"))
    A, B = adapter_tensors(model)["0"]
    fill((A, B))
    by_hand = made(lambda: Standardised(3, 4, 2))
    with torch.no_grad():
        by_hand[0].weight += 2.0 * (B @ A).view(4, 3, 2)
    torch.testing.assert_close(model(X), by_hand(X))
    merge(model)
    torch.testing.assert_close(model(X), by_hand(X))


def test_that_peft_may_have_trained_another_function_is_said(tmp_path):
    theirs = saved_by_peft(lambda: Standardised(3, 4, 2), tmp_path)
    model = made(lambda: Standardised(3, 4, 2))
    with pytest.warns(UserWarning, match=r'^"0" \(Standardised\): the class has its own forward'):
        load_adapter(model, tmp_path)
    # The fault itself: A is Standardised too, and what it gives is added to the output.
    assert not torch.allclose(theirs(X), model(X), atol=1e-3)


def test_what_peft_keeps_of_a_class_beside_a_and_b_is_refused(tmp_path):
    saved_by_peft(lambda: Gained(3, 4, 2), tmp_path)
    with pytest.raises(AdapterFileError, match=r'"base_model\.model\.0\.lora_[AB]\.gain" of no use here'):
        load_adapter(made(lambda: Gained(3, 4, 2)), tmp_path)


def test_a_scaled_embedding_of_transformers_is_the_same_function(tmp_path):
    def make():
        return Gemma3TextScaledWordEmbedding(9, 4, padding_idx=0, embed_scale=3.0)

    theirs = saved_by_peft(make, tmp_path)
    model, ids = made(make), torch.arange(9)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(model, tmp_path)
    torch.testing.assert_close(model(ids), theirs(ids), rtol=0, atol=1e-6)
