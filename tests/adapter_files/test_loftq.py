"""LoftQ beside PEFT's: the start, spectra, first steps and files, over the same quantised base."""

import copy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoftQConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as peft_layer
from peft.utils import loftq_utils
from safetensors.torch import save_file
from torch import Tensor, nn

from quantised_layers import Net, inputs
from rankwise import quantize
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, trainable_parameters
from rankwise.lora.inits import initial_adapter
from rankwise.lora.inits.loftq import remember_error
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.layer_types.quantised import plain_weight

CLOSE = {"rtol": 0, "atol": 1e-5}
TARGETS = ["up", "down"]
R = 4


def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's function as it is, but for the device that it names: it computes on "cuda" whatever is there."""
    plain: types.FunctionType = function.__wrapped__  # type: ignore[attr-defined]
    constants = tuple("cpu" if constant == "cuda" else constant for constant in plain.__code__.co_consts)
    assert constants != plain.__code__.co_consts
    code = plain.__code__.replace(co_consts=constants)
    return torch.no_grad()(types.FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__))


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_layer, "loftq_init", on_cpu(loftq_utils.loftq_init))
    monkeypatch.setattr(loftq_utils, "_loftq_init_new", on_cpu(loftq_utils._loftq_init_new))


def quantised(kind: str) -> Net:
    model = Net().train()  # in training mode 8-bit layers of a CPU don't round their inputs
    quantize(model, kind, error_rank=R)
    return model


def ours(kind: str, alpha: float = R) -> nn.Module:
    model = quantised(kind)
    inject(model, LoRAConfig(r=R, alpha=alpha, init="loftq", target_modules=TARGETS))
    return model


def pefts(kind: str, folder: Path) -> PeftModel:
    """PEFT's two ways: over layers of 4 bits, or (8 bits) over plain layers with the rounded numbers."""
    if kind == "int8":
        settings: dict[str, Any] = {"init_lora_weights": "loftq", "loftq_config": LoftQConfig(loftq_bits=8)}
        return get_peft_model(Net().train(), LoraConfig(r=R, lora_alpha=R, target_modules=TARGETS, **settings))
    save_file(Net().state_dict(), folder / "model.safetensors")
    base: Any = quantised(kind)
    base.is_loaded_in_4bit = True  # as transformers leaves a model
    peer = get_peft_model(base, LoraConfig(r=R, lora_alpha=R, target_modules=TARGETS))
    loftq_utils.replace_lora_weights_loftq(peer, str(folder / "model.safetensors"))
    return peer


def steps(model: nn.Module, parameters: list[nn.Parameter], n: int) -> Tensor:
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(n):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs()), torch.arange(5)).backward()
        optimiser.step()
    return model(inputs()).detach()


def asking(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_start_spectra_and_first_steps_are_pefts(kind: str, tmp_path: Path) -> None:
    peer, model = pefts(kind, tmp_path), ours(kind)
    for name, (A, B) in adapter_tensors(model).items():
        layer = peer.base_model.model.get_submodule(name)
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(B @ A, update, **CLOSE)
        torch.testing.assert_close(torch.linalg.svdvals(B @ A), torch.linalg.svdvals(update), **CLOSE)
    assert not torch.allclose(model(inputs()), quantised(kind)(inputs()), **CLOSE)
    torch.testing.assert_close(model(inputs()), peer(inputs()), **CLOSE)
    torch.testing.assert_close(steps(model, trainable_parameters(model), 1), steps(peer, asking(peer), 1), **CLOSE)
    torch.testing.assert_close(steps(model, trainable_parameters(model), 4), steps(peer, asking(peer), 4), **CLOSE)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_files_both_ways(kind: str, tmp_path: Path) -> None:
    model, peer = ours(kind, alpha=9.0), pefts(kind, tmp_path)
    trained, theirs = steps(model, trainable_parameters(model), 3), steps(peer, asking(peer), 3)
    save_adapter(model, tmp_path / "ours")
    there = PeftModel.from_pretrained(quantised(kind), tmp_path / "ours").train()
    assert there.peft_config["default"].init_lora_weights is True
    torch.testing.assert_close(there(inputs()).detach(), trained, **CLOSE)
    peer.save_pretrained(tmp_path / "theirs")
    here = quantised(kind)
    if kind == "int8":
        # PEFT would round the base again as it loads the file; over a rounded base it is to say so.
        with pytest.raises(AdapterFileError, match='init_lora_weights = "loftq"'):
            load_adapter(here, tmp_path / "theirs")
        peer.peft_config["default"].init_lora_weights = True
        peer.save_pretrained(tmp_path / "theirs")
    load_adapter(here, tmp_path / "theirs")
    torch.testing.assert_close(here(inputs()).detach(), theirs, **CLOSE)


def test_pefts_own_4_bits_differ_in_their_scales_only() -> None:
    """For plain layers PEFT keeps the scale of every 64 numbers in float32, where `quantize` has 8 bits (QLoRA's double
    quantisation). Of PEFT's rounded weight ours is the same start; of each its own, both are as near to the weight."""
    peft_init = on_cpu(loftq_utils.loftq_init)
    W = Net().up.weight.detach()
    theirs, A, B = peft_init(W, num_bits=4, reduced_rank=R, num_iter=1)
    layer = nn.Linear(64, 128)
    remember_error(layer, W, theirs, rank=R)
    for scale in (1.0, 3.0):  # PEFT's start leaves the scale out
        own = initial_adapter("loftq", seed=0, module="m", r=R, d_in=64, d_out=128, scale=scale, layer=layer)
        torch.testing.assert_close(scale * own[1] @ own[0], B @ A, **CLOSE)
    up = quantised("nf4").up
    rounded = plain_weight(up, layer_type_of(up))
    levels = [Q.view(-1, 64) / Q.view(-1, 64).abs().amax(1, keepdim=True) for Q in (theirs, rounded)]
    torch.testing.assert_close(*levels, rtol=0, atol=1e-6)
    assert not torch.equal(theirs, rounded)
    a, b = adapter_tensors(ours("nf4"))["up"]
    with torch.no_grad():
        left = float((W - rounded - b @ a).norm()), float((W - theirs - B @ A).norm())
        assert max(left) < float((W - rounded).norm())
    assert left[0] == pytest.approx(left[1], rel=0.01)


def test_the_scale_makes_no_difference_to_the_start() -> None:
    expected = ours("nf4")(inputs())
    torch.testing.assert_close(ours("nf4", alpha=32.0)(inputs()), expected, **CLOSE)
    assert copy.deepcopy(ours("nf4"))(inputs()).equal(expected)
