"""VeRA against PEFT's and against its equation; in packs; in files both ways."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import rankwise
from rankwise import LoRAConfig, load_adapter, save_adapter
from rankwise.adapter_files.inspecting import inspect_adapter
from rankwise.errors import AdapterError, AdapterFileError, ConfigError, TargetError
from rankwise.lora import count_parameters, eject, inject, merge, trainable_parameters, unmerge
from rankwise.lora.adapter import adapted_layers
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.sweeps.candidates.warm_start import read_start
from rounding import alike
from small_sweep import accuracy, loss, small_model, some_data

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import PeftModel, VeraConfig, get_peft_model

X = torch.linspace(-1, 1, 24).view(4, 6)
TARGETS = ["0", "2"]


def model() -> nn.Sequential:
    """Layers of different sizes: A is as wide as the widest input, B as long as the longest output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def moved(tensors: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)


def ours(r: int = 4, seed: int = 0) -> nn.Sequential:
    net = model()
    inject(net, LoRAConfig(r=r, variant="vera", seed=seed))
    moved(trainable_parameters(net))
    return net


def theirs(r: int = 4, key: int = 0) -> nn.Module:
    net = get_peft_model(model(), VeraConfig(r=r, target_modules=TARGETS, projection_prng_key=key))
    moved([p for p in net.parameters() if p.requires_grad])
    return net.eval()


def test_it_begins_at_the_base_and_trains_two_vectors_a_layer() -> None:
    net = model()
    base = net(X)
    report = inject(net, LoRAConfig(r=4, variant="vera", alpha=7.0))
    assert alike(net(X), base)
    assert report.trainable_parameters == count_parameters(net) == (4 + 8) + (4 + 3)
    assert [tuple(p.shape) for p in trainable_parameters(net)] == [(4,), (8,), (4,), (3,)]
    first, second = (lora for _, lora in adapted_layers(net).values())
    assert first.A["default"] is second.A["default"]
    assert not first.A["default"].requires_grad
    assert (first.A["default"].shape, first.B["default"].shape) == ((4, 8), (8, 4))


def test_outputs_and_merged_weights_are_those_of_the_equation() -> None:
    net = ours()
    h = X
    for name in TARGETS:
        layer = net.get_submodule(name)
        lora, d_in, d_out = layer.lora, layer.in_features, layer.out_features
        A, B = lora.A["default"][:, :d_in], lora.B["default"][:d_out]
        delta = torch.diag(lora.lambda_b["default"]) @ B @ torch.diag(lora.lambda_d["default"]) @ A
        h = h @ (layer.weight + delta).T + layer.bias
        h = torch.relu(h) if name == "0" else h
    torch.testing.assert_close(net(X), h)
    merge(net)
    torch.testing.assert_close(net(X), h)
    unmerge(net)
    torch.testing.assert_close(copy.deepcopy(net)(X), h)


def test_projections_are_those_that_peft_draws() -> None:
    mine, other = ours(seed=3), theirs(key=3)
    layer, lora = other.base_model.model[0], next(iter(adapted_layers(mine).values()))[1]
    assert torch.equal(lora.A["default"], layer.vera_A["default"])
    assert torch.equal(lora.B["default"], layer.vera_B["default"])


def test_a_file_of_ours_in_peft(tmp_path: Path) -> None:
    net = ours(seed=5)
    save_adapter(net, tmp_path)
    bare = copy.deepcopy(net)
    eject(bare)
    loaded = PeftModel.from_pretrained(bare, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(X), net(X), rtol=1e-5, atol=1e-6)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        "base_model.vera_A",
        "base_model.vera_B",
        *(f"base_model.model.{name}.vera_lambda_{which}" for name in TARGETS for which in "bd"),
    }
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    known = VeraConfig().to_dict()
    assert fields.keys() <= known.keys()
    assert (fields["peft_type"], fields["projection_prng_key"], fields["save_projection"]) == ("VERA", 5, True)


def test_a_file_of_peft_here(tmp_path: Path) -> None:
    other = theirs(key=2)
    other.save_pretrained(str(tmp_path))
    net = model()
    report = load_adapter(net, tmp_path)
    assert report.trainable_parameters == (4 + 8) + (4 + 3)
    torch.testing.assert_close(net(X), other(X), rtol=1e-5, atol=1e-6)
    config = net[0].lora.configs["default"]
    assert (config.variant, config.r, config.seed) == ("vera", 4, 2)
    save_adapter(net, tmp_path / "again")
    again = model()
    load_adapter(again, tmp_path / "again")
    assert alike(again(X), net(X))
    found = inspect_adapter(tmp_path)
    assert (found.parameters, found.findings) == ((4 + 8) + (4 + 3), ())
    assert LoRAConfig.from_peft(VeraConfig(r=4, target_modules=TARGETS, vera_dropout=0.1)).dropout == 0.1


def test_a_pack_trains_each_as_alone() -> None:
    net, (x, y) = small_model(), some_data(16, 0)
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, variant="vera", seed=r)) for r in (1, 3)]
    members.append(Member(name="lora", lora=LoRAConfig(r=2)))
    pack = Pack(net, members, loss)
    rates = torch.tensor([0.1, 0.1, 0.01])
    with pack.attached((x[:2], y[:2]), training=True):
        for _ in range(4):
            pack.step((x.unsqueeze(0), y.unsqueeze(0)), rates, None, None)
    assert pack.notes == []
    for member in members[:2]:
        lone = small_model()
        inject(lone, member.lora)
        optimiser = torch.optim.AdamW(trainable_parameters(lone), lr=0.1, weight_decay=0.0)
        for _ in range(4):
            optimiser.zero_grad()
            loss(lone(x), (x, y)).mean().backward()
            optimiser.step()
        state = pack.states()[member.name]
        held = {
            f"{path}.{key}": lora.parameters_of("default")[key].detach()
            for path, (_, lora) in adapted_layers(lone).items()
            for key in ("lambda_d", "lambda_b")
        }
        assert state.keys() == held.keys()
        for key, value in held.items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6)


def test_a_sweep_counts_and_saves_it(tmp_path: Path) -> None:
    data = dict(zip(("train", "validation", "test"), (some_data(24, seed) for seed in range(3)), strict=True))
    configs = [LoRAConfig(r=2), LoRAConfig(r=2, variant="vera")]
    found = rankwise.sweep(
        small_model(),
        configs,
        **data,
        loss=loss,
        metric=accuracy,
        training=rankwise.Training(batch_size=8, epochs=1),
        lrs=0.1,
        plan="grid",
        seeds=1,
        progress="quiet",
        out=tmp_path / "out",
    )
    counts = {c["name"]: c["trainable_parameters"] for c in found.results["configurations"]}
    assert counts == {"r2": 2 * (6 + 8) + 2 * (8 + 3), "r2 vera": (2 + 8) + (2 + 3), "full": 83}
    run = next(run for run in found.results["runs"] if run["configuration"] == "r2 vera")
    on, loaded = small_model(), small_model()
    found.put_on(on, run["name"])
    load_adapter(loaded, tmp_path / "out" / run["adapter"])
    torch.testing.assert_close(on(data["test"][0]), loaded(data["test"][0]))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(AdapterFileError, match=match):
        load_adapter(model(), folder)


def test_what_is_refused(tmp_path: Path) -> None:
    for given in ({"bias": "all"}, {"rank_pattern": {"0": 2}}, {"slices": {"0": ["0/2"]}}, {"trainable_tokens": [1]}):
        with pytest.raises(ConfigError, match=f'variant "vera" has one A and B .* so {next(iter(given))} can'):
            LoRAConfig(variant="vera", **given)
    for layer in (nn.Conv1d(2, 3, 1), nn.Embedding(4, 2)):
        with pytest.raises(TargetError, match="VeRA adapts linear layers only"):
            inject(nn.Sequential(layer), LoRAConfig(variant="vera", target_modules="0"))
    net = ours()
    save_adapter(net, tmp_path)
    with pytest.raises(AdapterFileError, match="is a VeRA adapter, whose frozen tensors a sweep draws for each seed"):
        read_start(model(), tmp_path)
    with pytest.raises(AdapterError, match='is of variant "vera", whose layers share tensors'):
        rankwise.swap_adapter(net, tmp_path)


def test_files_that_are_incomplete(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    save_file({k: t for k, t in tensors.items() if k != "base_model.vera_B"}, path)
    refused(tmp_path, 'has no "base_model.vera_B", which all modules of a VeRA adapter share')
    key = "base_model.model.0.vera_lambda_b"
    save_file({k: t for k, t in tensors.items() if k != key}, path)
    refused(tmp_path, f'has no "{key}"; with peft_type = "VERA" every module has lambda_d and lambda_b')
    save_file({**tensors, key: torch.ones(7)}, path)
    refused(tmp_path, r'The lambda_b of "0" has shape \(7,\)')
    save_file({**tensors, "base_model.vera_A": torch.ones(4, 5)}, path)
    refused(tmp_path, r'lora_A of "0" has shape \(4, 5\); the base layer needs \(r, 6\)')
