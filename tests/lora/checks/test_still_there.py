"""Layers that are replaced after `inject`: noticed at the next forward, also where nothing is trained."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import LlamaConfig, LlamaForCausalLM

from adapted_models import fill
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, eject, inject, trainable_parameters


def x():
    return torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 2))
    model(x())
    return model.eval()


def adapted(**settings):
    model = normed()
    inject(model, LoRAConfig(r=2, target_modules=["0", "3"], **settings))
    fill(trainable_parameters(model))
    return model


@pytest.mark.parametrize("settings", [{}, {"target_modules": ["0"], "modules_to_save": ["3"]}])
def test_a_head_replaced_before_inference_is_said_once(settings):
    model = normed()
    inject(model, LoRAConfig(**{"r": 2, "target_modules": ["0", "3"], **settings}))
    model(x())
    model[3] = nn.Linear(20, 5)
    with pytest.warns(UserWarning, match=r'attached to "3.*", which no longer holds it: .* Outputs are without it'):
        model(x())
    model(x())
    with pytest.raises(AdapterError, match="no longer holds it"):
        model.train()(x())


def test_an_adapter_that_is_gone_altogether_is_said():
    model = normed()
    inject(model, LoRAConfig(r=2, target_modules="3"))
    model[3] = nn.Linear(20, 5)
    with pytest.warns(UserWarning, match='"default" was attached to "3", which no longer holds it'):
        model(x())
    inject(model := normed(), LoRAConfig(r=2, target_modules="3"))
    model[3] = nn.Linear(20, 5)
    with pytest.raises(AdapterError, match="or change the model first, then inject"):
        model.train()(x())


def test_norms_that_are_replaced_stay_frozen_and_wrappers_are_no_change():
    model = adapted()
    outputs = model(x())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    model[3] = checkpoint_wrapper(model[3])
    before = {name: buffer.clone() for name, buffer in model[1].named_buffers()}
    replaced = nn.BatchNorm1d(4)
    replaced.load_state_dict(model[1].state_dict())
    model[1] = replaced.requires_grad_(False)
    torch.testing.assert_close(model(x()), outputs)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model[1].named_buffers())
    eject(copy.deepcopy(model))


def test_a_norm_fused_into_an_adapted_layer_is_said():
    model = adapted()
    fused = copy.deepcopy(model[0])  # not by torch's own function, which is refused
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight,
        fused.bias,
        *(getattr(model[1], name) for name in ("running_mean", "running_var", "eps")),
        model[1].weight,
        model[1].bias,
    )
    model[0], model[1] = fused, nn.Identity()
    with pytest.warns(UserWarning, match='"1" has left the model.* merge before fusing'):
        model(x())


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_vocabulary_resized_in_place_is_refused(target):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=2, tie_word_embeddings=True, **sizes))
    inject(model.eval(), LoRAConfig(r=2, target_modules=target))
    model.resize_token_embeddings(24, mean_resizing=False)
    with pytest.raises(AdapterError, match=r"has shape \(24, 16\) now and had \(20, 16\)"):
        model(torch.arange(6)[None])
