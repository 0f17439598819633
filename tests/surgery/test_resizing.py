"""Resized adapters: the function of the truncated update, in Rankwise and in peft."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rankwise
from adapted_models import MODELS, Experts, fill, mlp, ours, outputs, theirs
from rankwise.cli import main
from rankwise.errors import AdapterFileError, ConfigError, OutputError
from rankwise.lora import adapter_tensors, merge

pytestmark = [
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape"),  # of lora_bias
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def deltas(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """What merging an adapter adds to each weight, in float64."""
    model = model.double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rankwise.load_adapter(model, folder)
    merge(model, keep_base=False)
    after = dict(model.named_parameters())
    changes = {name: after[name].detach() - old for name, old in before.items() if name in after}
    return {name: change for name, change in changes.items() if change.count_nonzero()}


def truncated(delta: Tensor, r: int) -> Tensor:
    U, S, Vt = np.linalg.svd(delta.flatten(1).numpy(), full_matrices=False)
    return torch.from_numpy(U[:, :r] * S[:r] @ Vt[:r]).view(delta.shape)


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("name", MODELS)
def test_every_update_is_its_truncation(tmp_path: Path, name: str, scaling: str) -> None:
    model = ours(MODELS[name]().double(), r=4, target_modules="all-linear", scaling=scaling)
    rankwise.save_adapter(model, tmp_path / "r4")
    exact = deltas(MODELS[name](), tmp_path / "r4")
    for r in (4, 2):
        report = rankwise.resize(tmp_path / "r4", tmp_path / f"to{r}", rank=r)
        found = deltas(MODELS[name](), tmp_path / f"to{r}")
        assert found.keys() == exact.keys()
        squares = []
        for path, delta in exact.items():
            expected = truncated(delta, r)
            torch.testing.assert_close(found[path], expected, rtol=0, atol=1e-10 * float(delta.abs().max()))
            squares.append((float((delta - expected).square().sum()), float(delta.square().sum())))
        left, whole = map(sum, zip(*squares, strict=True))
        assert report.error == pytest.approx((left / whole) ** 0.5, abs=1e-9)
        assert {update.r for update in report.updates} == {r}


class Mixed(nn.Module):
    """Layers of every kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.grouped = nn.Conv1d(6, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.grouped(self.conv(self.tokens(ids).mT)).mT)


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


KINDS = ["tokens", "conv", "grouped", "head"]
IDS = torch.arange(9).view(1, 9)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_kinds_of_layers_in_peft(tmp_path: Path, whose: str) -> None:
    if whose == "ours":
        rankwise.save_adapter(ours(mixed(), r=4, target_modules=KINDS, rank_pattern={"head": 3}), tmp_path / "a")
    else:
        theirs(mixed(), r=4, target_modules=KINDS, rank_pattern={"head": 3}).save_pretrained(str(tmp_path / "a"))
    before = PeftModel.from_pretrained(mixed(), str(tmp_path / "a")).eval()
    same = rankwise.resize(tmp_path / "a", tmp_path / "same", rank=4)
    assert same.error < 1e-6
    again = PeftModel.from_pretrained(mixed(), str(tmp_path / "same")).eval()
    torch.testing.assert_close(again(IDS), before(IDS), rtol=1e-5, atol=1e-6)
    rankwise.resize(tmp_path / "a", tmp_path / "two", rank=2)
    two = PeftModel.from_pretrained(mixed(), str(tmp_path / "two")).eval()
    mine = mixed()
    rankwise.load_adapter(mine, tmp_path / "two")
    torch.testing.assert_close(two(IDS), mine(IDS), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(two(IDS), before(IDS), atol=1e-4)
    if whose == "ours":
        exact, found = deltas(mixed(), tmp_path / "a"), deltas(mixed(), tmp_path / "two")
        for path, delta in exact.items():
            torch.testing.assert_close(found[path], truncated(delta, 2), rtol=0, atol=1e-6)


def test_stacks_of_experts(tmp_path: Path) -> None:
    base = nn.Sequential(Experts())
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=[], target_parameters=["0.up", "0.down"])
    wrapped = get_peft_model(nn.Sequential(Experts()), settings)
    wrapped.base_model.model.load_state_dict(base.state_dict(), strict=False)
    fill(p for key, p in wrapped.named_parameters() if "lora_" in key)
    wrapped.save_pretrained(str(tmp_path / "a"))
    exact = deltas(nn.Sequential(Experts()), tmp_path / "a")
    assert {path: tuple(delta.shape) for path, delta in exact.items()} == {"0.up": (3, 4, 5), "0.down": (3, 5, 4)}
    rankwise.resize(tmp_path / "a", tmp_path / "b", rank=1)
    for path, delta in deltas(nn.Sequential(Experts()), tmp_path / "b").items():
        for one, expert in zip(delta, exact[path], strict=True):
            torch.testing.assert_close(one, truncated(expert, 1), rtol=0, atol=1e-6)
    rankwise.resize(tmp_path / "a", tmp_path / "c", error=0.5)
    PeftModel.from_pretrained(nn.Sequential(Experts()), str(tmp_path / "c"))


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_ranks_by_layer_in_peft(tmp_path: Path, name: str) -> None:
    rankwise.save_adapter(ours(MODELS[name](), r=4, target_modules="all-linear"), tmp_path / "a")
    by_energy = rankwise.resize(tmp_path / "a", tmp_path / "energy", energy=0.8)
    by_error = rankwise.resize(tmp_path / "a", tmp_path / "error", error=0.2**0.5)
    assert [update.r for update in by_energy.updates] == [update.r for update in by_error.updates]
    assert all(update.error <= 0.2**0.5 + 1e-6 for update in by_error.updates)
    assert len({update.r for update in by_error.updates}) > 1
    wrapped = PeftModel.from_pretrained(MODELS[name](), str(tmp_path / "error")).eval()
    mine = MODELS[name]()
    rankwise.load_adapter(mine, tmp_path / "error")
    torch.testing.assert_close(outputs(wrapped), outputs(mine), rtol=1e-5, atol=1e-5)


def test_what_is_trained_whole_and_how_it_is_used_is_copied(tmp_path: Path) -> None:
    model = ours(mlp(), r=3, target_modules=["up"], modules_to_save=["down"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "down" in name:
                parameter.add_(1.0)
    rankwise.save_adapter(model, tmp_path / "a", base_name="owner/base")
    (tmp_path / "a" / "labels.json").write_text("{}")
    (tmp_path / "a" / "README.md").write_text("r = 3")
    rankwise.resize(tmp_path / "a", tmp_path / "b", rank=1)
    old, new = (load_file(tmp_path / f / "adapter_model.safetensors") for f in "ab")
    assert all(torch.equal(old[key], new[key]) for key in old if "lora_" not in key)
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "labels.json"}
    # The checksums of the base came along.
    other = mlp()
    with torch.no_grad():
        other.up.weight.add_(1.0)
    with pytest.raises(AdapterFileError, match="isn't the one"):
        rankwise.load_adapter(other, tmp_path / "b")
    rankwise.load_adapter(mlp(), tmp_path / "b")


def test_a_bias_of_b_adds_what_it_did(tmp_path: Path) -> None:
    wrapped = theirs(mlp(), r=2, target_modules=["up"], lora_bias=True)
    wrapped.save_pretrained(str(tmp_path / "a"))
    rankwise.resize(tmp_path / "a", tmp_path / "b", rank=1)
    two, one = (PeftModel.from_pretrained(mlp(), str(tmp_path / f)).eval() for f in "ab")
    for model in (two, one):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    parameter.zero_()
    torch.testing.assert_close(outputs(one), outputs(two))
    assert not torch.allclose(outputs(one), outputs(mlp()))


def test_half_precision_is_as_near_as_its_numbers(tmp_path: Path) -> None:
    rankwise.save_adapter(ours(mlp(), r=2), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    report = rankwise.resize(tmp_path / "a", tmp_path / "b", rank=2)
    assert 1e-4 < report.error < 1e-2
    assert {t.dtype for t in load_file(tmp_path / "b" / "adapter_model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 3}, "rank is 3; .* has rank 2"),
        ({"rank": 0}, "rank is 0; a rank is at least 1"),
        ({}, "Nothing is given; give one of rank, energy, error"),
        ({"rank": 1, "error": 0.1}, "rank and error are given"),
        ({"energy": 1.5}, r"energy is 1.5; a share in \(0, 1\]"),
        ({"error": 1.0}, r"error is 1; a relative error in \[0, 1\)"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, float], message: str) -> None:
    rankwise.save_adapter(ours(mlp()), tmp_path / "a")
    with pytest.raises(ConfigError, match=message):
        rankwise.resize(tmp_path / "a", tmp_path / "b", **settings)  # pyright: ignore[reportArgumentType]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("variant", ["dora", "vera"])
def test_variants_whose_updates_need_more(tmp_path: Path, variant: str) -> None:
    rankwise.save_adapter(ours(mlp(), target_modules=["up"], variant=variant), tmp_path / "a")
    with pytest.raises(AdapterFileError, match="only plain LoRA has updates that stand for themselves"):
        rankwise.resize(tmp_path / "a", tmp_path / "b", rank=1)
    assert not (tmp_path / "b").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rankwise.save_adapter(ours(mlp()), tmp_path / "a")
    assert main(["resize", str(tmp_path / "a"), "--rank", "1", "--out", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "r = 1" in shown
    assert "relative error of the update: 0." in shown
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["r"] == 1
    assert main(["resize", str(tmp_path / "a"), "--rank", "3", "--out", str(tmp_path / "c")]) == 2
    assert "--rank is 3" in capsys.readouterr().err
    with pytest.raises(OutputError, match="not empty"):
        rankwise.resize(tmp_path / "a", tmp_path / "b", rank=1)


def test_tied_layers_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.tokens(ids))

    torch.manual_seed(0)
    base = Tied().state_dict()

    def tied() -> nn.Module:
        model = Tied()
        model.load_state_dict(base)
        return model

    model = ours(tied(), r=3, target_modules=["tokens", "head"])
    assert len(adapter_tensors(model)) == 1
    rankwise.save_adapter(model, tmp_path / "a")
    rankwise.resize(tmp_path / "a", tmp_path / "b", rank=2)
    again = tied()
    rankwise.load_adapter(again, tmp_path / "b")
    assert len(adapter_tensors(again)) == 1


def test_an_attention_has_one_rank_in_peft(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    def attention() -> nn.Module:
        torch.manual_seed(0)
        return Attention().train()  # peft's is without effect in eval mode's fast path

    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    model = ours(attention(), r=4, target_modules=["attention.in_proj_weight", "attention.out_proj"])
    rankwise.save_adapter(model, tmp_path / "a")
    report = rankwise.resize(tmp_path / "a", tmp_path / "b", error=0.4)
    assert len({update.r for update in report.updates}) == 1
    assert all(update.error <= 0.4 for update in report.updates)
    assert report.updates[0].r < 4
    mine = attention()
    rankwise.load_adapter(mine, tmp_path / "b")
    theirs = PeftModel.from_pretrained(attention(), str(tmp_path / "b"))
    # PEFT adds the output projection's delta twice (tests/peft_faults/test_attention.py).
    theirs.get_submodule("base_model.model.attention.base_layer.out_proj").scaling["default"] /= 2  # pyright: ignore
    torch.testing.assert_close(theirs(x), mine(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mine(x), attention()(x), atol=1e-4)
