"""Ranks and factors are those of peft's conversion and of kohya's resize, where they do the same."""

import math
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


@pytest.mark.parametrize("S", SPECTRA, ids=len)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_kohyas_share_of_the_norm(S: torch.Tensor, share: float) -> None:
    """Its sv_fro keeps a share of the Frobenius norm: the fewest values whose squares sum to the share's square."""
    total = math.fsum(S.double().square().tolist())
    kept = np.cumsum(S.double().square().numpy()) / total
    fewest = 1 + int(np.argmax(kept >= share**2 - 1e-12))
    assert rank_rule(None, share**2 - 1e-9, None).of(S) == fewest
