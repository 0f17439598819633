"""The comparison of a sweep's adapters: directions that two seeds share, and the figure of them."""

from pathlib import Path

import pytest
import torch
from torch import nn

import rankwise
from rankwise.cli import main
from rankwise.report.page import page
from rankwise.report.subspaces.compared import compare_subspaces
from rankwise.results import Results, parsed
from sample_results import sample_content

SHARED = 3


def save(folder: Path, r: int, seed: int) -> None:
    """An adapter whose first directions are the same for every seed, the others its own."""
    model = nn.Sequential(nn.Linear(24, 16))
    rankwise.inject(model, rankwise.LoRAConfig(r=r))
    common, own = torch.Generator().manual_seed(5), torch.Generator().manual_seed(seed + 10)
    rows = torch.cat([torch.randn(SHARED, 24, generator=common), torch.randn(r - SHARED, 24, generator=own)])
    tensors = model[0].lora.tensors("default")  # type: ignore[union-attr]
    with torch.no_grad():
        tensors["A"].copy_(torch.linalg.qr(rows.mT).Q.mT)
        tensors["B"].copy_(torch.eye(16)[:, :r] * torch.linspace(9, 1, r))
    rankwise.save_adapter(model, folder)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Results]:
    content = sample_content((4, 8), seeds=2)
    for one in content["runs"]:
        if one["adapter"]:
            save(tmp_path / one["adapter"], one["r"], one["seed"])
    return tmp_path, parsed(content)


def test_shared_directions_are_found(run: tuple[Path, Results]) -> None:
    found = compare_subspaces(run[1], run[0])
    assert [(one.one, one.other) for one in found.overlaps] == [
        ("r = 8, seed 1", "r = 8, seed 0") if i else ("r = 4, seed 1", "r = 8, seed 0") for i in range(2)
    ]
    for overlap in found.overlaps:
        values = overlap.by_module["0"]
        assert values[SHARED - 1, SHARED - 1] == pytest.approx(1.0, abs=1e-5)
        assert values[-1, SHARED] < 0.95
    assert found.amplified == {}, "the base is not at hand"


def test_they_are_in_the_page(run: tuple[Path, Results]) -> None:
    directory, results = run
    text = page(results, None, compare_subspaces(results, directory))
    assert "The subspaces" in text
    assert "r = 4, seed 1, in r = 8, seed 0" in text


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    (tmp_path / "results.json").write_text(json.dumps(sample_content((), seeds=1, answer_r=None)))
    assert main(["report", str(tmp_path), "--subspaces"]) == 2
    assert "no two adapters with the same modules to compare; --subspaces needs" in capsys.readouterr().err
