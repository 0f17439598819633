"""Initialisations beside PEFT's: first steps, spectra, and files both ways."""

import copy

import peft
import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import Tensor, nn

from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge, trainable_parameters
from rankwise.lora.inits.orthogonal import orthogonal_pair
from rankwise.surgery.resizing import resize

CLOSE = {"rtol": 0, "atol": 1e-5}
PAIRS = [
    ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
    ({"init": "olora"}, {"init_lora_weights": "olora"}),
    ({"init": "pissa", "scaling": "alpha/sqrt(r)"}, {"init_lora_weights": "pissa", "use_rslora": True}),
    ({"init": "pissa", "variant": "dora"}, {"init_lora_weights": "pissa", "use_dora": True}),
]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 3))


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 12, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3


def steps(model: nn.Module, parameters: list[nn.Parameter], n: int) -> Tensor:
    """Outputs after n steps."""
    x, y = rows()
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(n):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model(x).detach()


def in_peft(base: nn.Module, **settings) -> PeftModel:
    own = LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], **settings)
    return get_peft_model(base, own)


def ours(base: nn.Module, **settings) -> nn.Module:
    inject(base, LoRAConfig(r=4, alpha=6, target_modules=["0", "2"], **settings))
    return base


def asking(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("own", "theirs"), PAIRS)
def test_first_steps_and_spectra_are_pefts(own, theirs):
    peer, model = in_peft(mlp(), **theirs), ours(mlp(), **own)
    base = mlp()
    for name, (A, B) in adapter_tensors(model).items():
        layer = peer.base_model.model.get_submodule(name)
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(torch.linalg.svdvals(B @ A), torch.linalg.svdvals(update), **CLOSE)
        # What peft leaves of the base's weight is what ours has without the trained half.
        s = layer.scaling["default"]
        torch.testing.assert_close(layer.base_layer.weight, base.get_submodule(name).weight - s * B @ A, **CLOSE)
    torch.testing.assert_close(model(rows()[0]), base(rows()[0]), **CLOSE)
    torch.testing.assert_close(steps(model, trainable_parameters(model), 1), steps(peer, asking(peer), 1), **CLOSE)
    torch.testing.assert_close(steps(model, trainable_parameters(model), 4), steps(peer, asking(peer), 4), **CLOSE)


@pytest.mark.parametrize("own", [own for own, _ in PAIRS] + [{"init": "olora", "variant": "lora-fa"}])
def test_our_file_is_an_ordinary_adapter_of_twice_the_rank(own, tmp_path):
    model = ours(mlp(), **own)
    trained = steps(model, trainable_parameters(model), 3)
    save_adapter(model, tmp_path)
    again, there = mlp(), PeftModel.from_pretrained(mlp(), tmp_path).eval()
    load_adapter(again, tmp_path)
    torch.testing.assert_close(again(rows()[0]), trained, **CLOSE)
    torch.testing.assert_close(there(rows()[0]), trained, **CLOSE)
    assert there.peft_config["default"].init_lora_weights is True
    assert (there.peft_config["default"].r, adapter_tensors(again)["0"][0].shape[0]) == (8, 8)
    assert read_adapter(tmp_path)[0].r == 8 if own.get("variant") != "dora" else True
    merge(model)
    torch.testing.assert_close(model(rows()[0]), trained, **CLOSE)


@pytest.mark.parametrize(("own", "theirs"), PAIRS)
def test_pefts_file_over_a_residual_base_is_read(own, theirs, tmp_path):
    peer = in_peft(mlp(), **theirs)
    trained = steps(peer, asking(peer), 3)
    peer.save_pretrained(tmp_path / "theirs")
    model = mlp()
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(rows()[0]), trained, **CLOSE)
    # Written again, it is over the base as it is.
    save_adapter(model, tmp_path / "again")
    torch.testing.assert_close(PeftModel.from_pretrained(mlp(), tmp_path / "again").eval()(rows()[0]), trained, **CLOSE)
    with pytest.raises(AdapterFileError, match=r"a base that load_adapter makes|DoRA"):
        read_adapter(tmp_path / "theirs")
    with pytest.raises(AdapterFileError, match=r"less its|DoRA"):
        resize(tmp_path / "theirs", tmp_path / "small", rank=2)


def test_a_residual_base_that_was_saved_takes_its_file_as_it_is(tmp_path):
    peer = in_peft(mlp(), init_lora_weights="pissa")
    residual = copy.deepcopy(peer).unload()
    trained = steps(peer, asking(peer), 2)
    peer.peft_config["default"].init_lora_weights = True
    peer.save_pretrained(tmp_path)
    load_adapter(residual, tmp_path)
    torch.testing.assert_close(residual(rows()[0]), trained, **CLOSE)


def test_orthogonal_numbers_are_pefts():
    settings = LoraConfig(r=4, target_modules=["0"], init_lora_weights="orthogonal")
    torch.manual_seed(7)
    layer = get_peft_model(nn.Sequential(nn.Linear(12, 16)), settings).base_model.model[0]
    torch.manual_seed(7)
    nn.Linear(12, 16), nn.Linear(12, 4, bias=False), nn.Linear(4, 16, bias=False)  # what peft draws before
    A, B = orthogonal_pair(torch.randn(4, 4), torch.randn(12, 2), torch.randn(2, 16))
    torch.testing.assert_close(layer.lora_A["default"].weight, A, **CLOSE)
    torch.testing.assert_close(layer.lora_B["default"].weight, B, **CLOSE)


def test_eva_axes_are_pefts():
    """Of inputs that hardly vary outside of four directions: PEFT's decomposition is approximate and random."""
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=["0"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    peer = get_peft_model(mlp(), settings, low_cpu_mem_usage=True)
    wide = rows()[0]
    x = wide[:, :4] * torch.tensor([8.0, 4, 2, 1]) @ torch.linalg.qr(wide[:12])[0][:4] + 1e-4 * wide
    batches = [x[:12], x[8:]]
    initialize_lora_eva_weights(
        peer,
        batches,
        forward_fn=lambda model, x: model(x),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda x, whole, name: x[0] if isinstance(x, tuple) else x,
        show_progress_bar=False,
    )
    model = mlp()
    inject(model, LoRAConfig(r=4, alpha=6, target_modules=["0"], init="eva"), init_data=batches)
    A = adapter_tensors(model)["0"][0].detach()
    torch.testing.assert_close(A, peer.base_model.model[0].lora_A["default"].weight.detach(), **CLOSE)
    torch.testing.assert_close(steps(model, trainable_parameters(model), 2), steps(peer, asking(peer), 2), **CLOSE)


def test_settings_of_peft_are_taken_over():
    for value, name in {"pissa": "pissa", "lora_ga": "lora-ga", "eva": "eva", "orthogonal": "orthogonal"}.items():
        assert LoRAConfig.from_peft({"target_modules": "all-linear", "init_lora_weights": value}).init == name
    assert peft.__version__
