"""What `inspect_adapter` says of a folder is what its tensors and settings are."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankwise.adapter_files import save_adapter
from rankwise.adapter_files.peft.matrices import as_matrices
from rankwise.cli import main
from rankwise.errors import AdapterFileError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import inject
from rankwise.lora.merge import merge
from rankwise.surgery.inspecting import inspect_adapter
from rankwise.surgery.spectra import effective_rank, thin_svd


def adapted(**more: object) -> nn.Module:
    """Two layers with A and B of random numbers, and a head."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 5), "head": nn.Linear(5, 2)})
    inject(model, LoRAConfig(r=3, alpha=7, target_modules=["up", "down"], modules_to_save=["head"], **more))  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "head" not in name:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_norms_are_those_of_what_merging_adds(tmp_path: Path, scaling: str) -> None:
    model = adapted(scaling=scaling, rank_pattern={"down": 2}, alpha_pattern={"up": 5.0})
    save_adapter(model, tmp_path / "a", base_name="owner/base")
    found = {module.path: module for module in inspect_adapter(tmp_path / "a").modules}
    before = {name: model.get_submodule(name).weight.detach().clone() for name in found}  # pyright: ignore[reportCallIssue]
    merge(model, keep_base=False)
    for name, module in found.items():
        values = torch.linalg.svdvals((model.get_submodule(name).weight - before[name]).detach().double())  # pyright: ignore[reportOperatorIssue]
        assert module.norm == pytest.approx(float(values.norm()), rel=1e-5)
        assert module.singular_values == pytest.approx(values[: module.r].tolist(), rel=1e-4)
        assert module.stable_rank == pytest.approx(float((values / values[0]).square().sum()), rel=1e-4)
        assert module.largest == pytest.approx(float(values.max()), rel=1e-5)
        p = [float(v) for v in values / values.sum() if v > 1e-6 * values.max()]
        assert module.effective_rank == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-4)
    assert (found["up"].r, found["down"].r, found["up"].alpha, found["down"].alpha) == (3, 2, 5, 7)


def test_sizes_and_settings(tmp_path: Path) -> None:
    model = adapted()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    save_adapter(model, tmp_path / "a", base_name="owner/base")
    found = inspect_adapter(tmp_path / "a")
    assert found.parameters == trained == 3 * (6 + 8) + 3 * (8 + 5) + 5 * 2 + 2
    assert found.settings["base_model_name_or_path"] == "owner/base"
    assert {path: shape for path, (shape, _) in found.saved.items()} == {"head.weight": (2, 5), "head.bias": (2,)}
    assert found.bytes == (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    assert (found.dtypes, found.findings) == (("float32",), ())


def test_a_convolution_is_taken_as_a_matrix() -> None:
    A, B = torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)
    delta = torch.einsum("orxy,rikl->oikl", B, A).flatten(1)
    pair = as_matrices(A, B)
    torch.testing.assert_close(thin_svd(pair.A[0], pair.B[0])[1].float(), torch.linalg.svdvals(delta)[:2])


@pytest.mark.parametrize(("values", "expected"), [([3.0, 3.0, 3.0, 3.0], 4.0), ([5.0, 0.0], 1.0), ([0.0, 0.0], 0.0)])
def test_effective_ranks(values: list[float], expected: float) -> None:
    assert effective_rank(Tensor(values)) == pytest.approx(expected)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(adapted(), tmp_path / "a", base_name="owner/base")
    assert main(["inspect", str(tmp_path / "a"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [module["path"] for module in content["modules"]] == ["down", "up"]
    assert content["run"] is None
    assert main(["inspect", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    assert "93 trainable parameters" in shown
    assert "base: owner/base" in shown
    assert main(["inspect", str(tmp_path)]) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_a_damaged_file(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(AdapterFileError, match="damaged or cut short"):
        inspect_adapter(tmp_path / "a")


def test_experts_and_groups_have_spectra(tmp_path: Path) -> None:
    """Each group of PEFT's adapter of a grouped convolution is a matrix; ranks are their means."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2))
    inject(model, LoRAConfig(r=2, alpha=2, target_modules=["0"]))
    A, B = torch.randn(2, 6), torch.randn(6, 2)
    with torch.no_grad():
        for parameter, values in zip(model[0].lora.tensors("default").values(), (A, B), strict=True):  # pyright: ignore
            parameter.copy_(values)
    save_adapter(model, tmp_path / "a")
    (module,) = inspect_adapter(tmp_path / "a").modules
    assert module.r == 4
    assert module.singular_values == pytest.approx(torch.linalg.svdvals(B @ A)[:2].tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["s.png", "s.svg"])
def test_the_figure(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(adapted(), tmp_path / "a")
    assert main(["inspect", str(tmp_path / "a"), "--figure", str(tmp_path / name)]) == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG") or b"Frobenius norm" in content
    assert main(["inspect", str(tmp_path / "a"), "--figure", str(tmp_path / "s.txt")]) == 2
    assert "ends in none of .png, .svg, .pdf" in capsys.readouterr().err


def test_what_is_saved_whole_is_listed_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "up": nn.Linear(2, 2)})
    inject(model, LoRAConfig(r=1, target_modules=["up"], modules_to_save=["0", "1"]))
    save_adapter(model, tmp_path / "a")
    assert main(["inspect", str(tmp_path / "a")]) == 0
    assert "in full: 2 of h.*.weight, 2x2, norm" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "a"), "--modules"]) == 0
    assert "in full: h.1.weight, 2x2" in capsys.readouterr().out
