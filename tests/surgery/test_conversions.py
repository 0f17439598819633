"""Ranks and factors are those of peft's conversion and of kohya's resize, where they do the same."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora.conversion import _convert_module_to_lora
from torch import nn

import rankwise
from rankwise.adapter_files.updates import read_updates
from rankwise.surgery.rank_rules import rank_rule

SPECTRA = [torch.tensor([5.0, 3.0, 1.0, 0.5]), torch.tensor([1.0] * 6), torch.logspace(0, -3, 16)]


@pytest.fixture(scope="module")
def theirs() -> peft.PeftModel:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=6, lora_alpha=9, target_modules=["0", "2"], init_lora_weights=False)
    return peft.get_peft_model(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 12)), config)


@pytest.mark.parametrize(("rank", "energy"), [(2, None), (None, 0.9), (None, 0.5)])
def test_peft_converts_to_the_same(
    theirs: peft.PeftModel, tmp_path: Path, rank: int | None, energy: float | None
) -> None:
    theirs.save_pretrained(str(tmp_path / "trained"))
    rankwise.resize(tmp_path / "trained", tmp_path / "small", rank=rank, energy=energy)
    for path, update in read_updates(tmp_path / "small").updates.items():
        module = theirs.base_model.model.get_submodule(path)
        A, B, r = _convert_module_to_lora(module, rank=rank or energy or 0.0)
        assert update.r == r
        ours = update.scale * update.pair.B[0] @ update.pair.A[0]
        torch.testing.assert_close(ours, B @ A, rtol=0, atol=1e-5)


def kohyas_rank(S: np.ndarray, method: str, target: float) -> int:
    """The rank that kohya's resize_lora.py chooses: values above the largest over the target (sv_ratio), or the fewest
    whose sum (sv_cumulative), or whose norm (sv_fro), is that share of all."""
    if method == "sv_ratio":
        return int(np.count_nonzero(target * S > S[0]))
    shares = np.cumsum(S) / S.sum() if method == "sv_cumulative" else np.sqrt(np.cumsum(S**2) / (S**2).sum())
    return 1 + int(np.argmax(shares >= target))


@pytest.mark.parametrize("S", SPECTRA, ids=len)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_kohyas_share_of_the_norm(S: torch.Tensor, share: float) -> None:
    """Its sv_fro is our energy of the share's square."""
    assert rank_rule(None, share**2 - 1e-9, None).of(S) == kohyas_rank(S.double().numpy(), "sv_fro", share - 1e-9)


@pytest.mark.parametrize(("method", "target"), [("sv_ratio", 2.0), ("sv_cumulative", 0.6), ("sv_fro", 0.8), ("", 3)])
def test_kohya_resizes_to_the_same(theirs: peft.PeftModel, tmp_path: Path, method: str, target: float) -> None:
    """In numpy: the scaled dense product, its SVD, cut to the rank of one of kohya's rules or to a fixed one."""
    theirs.save_pretrained(str(tmp_path / "trained"))
    ranks: set[int] = set()
    for path, update in read_updates(tmp_path / "trained").updates.items():
        A, B = update.pair.A[0].double().numpy(), update.pair.B[0].double().numpy()
        U, S, Vt = np.linalg.svd(update.scale * B @ A, full_matrices=False)
        r = kohyas_rank(S[:6], method, target) if method else int(target)
        energy = target**2 if method == "sv_fro" else None
        small = tmp_path / path
        rankwise.resize(tmp_path / "trained", small, rank=None if energy else r, energy=energy)
        one = read_updates(small).updates[path]
        assert one.r == r
        found = one.scale * one.pair.B[0].double().numpy() @ one.pair.A[0].double().numpy()
        np.testing.assert_allclose(found, U[:, :r] * S[:r] @ Vt[:r], rtol=0, atol=1e-6)
        ranks.add(r)
    assert ranks <= set(range(1, 6))
