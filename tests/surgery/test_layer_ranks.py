"""Ranks by layer: as many parameters as the flat rank, and more of the update."""

from pathlib import Path

import pytest
import torch
from torch import nn

import rankwise
from rankwise.adapter_files.updates import read_updates
from rankwise.errors import ConfigError
from rankwise.surgery.spectra import thin_svd


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 6))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of rank 6: the layer in the middle uses one direction, the first all."""
    net = model()
    rankwise.inject(net, rankwise.LoRAConfig(r=6, alpha=12.0))
    draws = torch.Generator().manual_seed(1)
    strengths = {"0": torch.ones(6), "1": torch.tensor([3.0, *[0.01] * 5]), "2": torch.linspace(1, 0.1, 6)}
    with torch.no_grad():
        for name, strength in strengths.items():
            tensors = net.get_submodule(name).lora.tensors("default")  # type: ignore[operator]
            tensors["A"].copy_(torch.linalg.qr(torch.randn(tensors["A"].shape[1], 6, generator=draws)).Q.mT)
            tensors["B"].copy_(torch.linalg.qr(torch.randn(tensors["B"].shape[0], 6, generator=draws)).Q * strength)
    return rankwise.save_adapter(net, tmp_path / "adapter")


def parameters(config: rankwise.LoRAConfig) -> int:
    return rankwise.inject(model(), config).trainable_parameters


def left_out(adapter: Path, ranks: dict[str, int]) -> float:
    """The squared norm of what the ranks leave out, over all layers."""
    updates = read_updates(adapter).updates.values()
    spectra = {one.path: thin_svd(one.pair.A, one.pair.B)[1][0] * one.scale for one in updates}
    return float(sum(S[ranks[path] :].square().sum() for path, S in spectra.items()))


@pytest.mark.parametrize("r", [1, 2, 3, 5])
def test_no_more_parameters_and_no_more_left_out(adapter: Path, r: int) -> None:
    config = rankwise.ranks_by_layer(adapter, r)
    flat = rankwise.LoRAConfig(r=r, alpha=12.0)
    assert parameters(config) <= parameters(flat) < parameters(config) + 2 * 16
    ranks = dict(config.rank_pattern)
    assert left_out(adapter, ranks) <= left_out(adapter, dict.fromkeys(ranks, r)) + 1e-12
    rankwise.inject(net := model(), config)
    assert [layer.lora.scale["default"] for layer in net] == pytest.approx([flat.scale()] * 3)  # type: ignore[union-attr]


def test_the_layer_that_uses_all_directions_gets_them(adapter: Path) -> None:
    ranks = rankwise.ranks_by_layer(adapter, 3).rank_pattern
    assert ranks["1"] == 1
    assert ranks["0"] == 6


@pytest.mark.parametrize("r", [0, 6])
def test_ranks_that_the_spectra_do_not_tell_of(adapter: Path, r: int) -> None:
    with pytest.raises(ConfigError, match=f"r is {r}, and .* has rank 6; its spectra tell of smaller ranks"):
        rankwise.ranks_by_layer(adapter, r)
