"""Combined adapters against the sum of their updates, and against what peft makes of the same adapters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import dare_linear, ties
from safetensors.torch import load_file
from torch import Tensor, nn

import rankwise
from adapted_models import mlp, ours, outputs
from rankwise.adapter_files.updates import read_updates
from rankwise.cli import main
from rankwise.errors import AdapterFileError, ConfigError, RankwiseError
from rankwise.lora import adapter_tensors
from rankwise.streams import stream
from rankwise.surgery import combining, methods
from rankwise.surgery.methods import Term

TARGETS = ["up", "block.up"]
WEIGHTS = [0.7, -0.4]


def saved(folder: Path, seed: int, **settings: object) -> Path:
    """An adapter of random numbers."""
    model = ours(mlp(), **{"target_modules": TARGETS, **settings})
    torch.manual_seed(seed)
    with torch.no_grad():
        for pair in adapter_tensors(model).values():
            for tensor in pair:
                tensor.normal_(std=0.3)
    return rankwise.save_adapter(model, folder)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, alpha=5.0, scaling="alpha/sqrt(r)")


def in_peft(two: tuple[Path, Path], method: str, **settings: object) -> PeftModel:
    model = PeftModel.from_pretrained(mlp(), str(two[0]), adapter_name="a")
    model.load_adapter(str(two[1]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], WEIGHTS, "both", combination_type=method, **settings)
    model.set_adapter("both")
    return model.eval()


def loaded(folder: Path) -> tuple[nn.Module, PeftModel]:
    model = mlp()
    rankwise.load_adapter(model, folder)
    return model, PeftModel.from_pretrained(mlp(), str(folder)).eval()


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("cat", "cat"), ("linear", "linear"), ("svd", "svd"), ("ties", "ties_svd"), ("dare", "dare_linear_svd")],
)
def test_it_is_what_peft_makes(two: tuple[Path, Path], tmp_path: Path, method: str, theirs: str) -> None:
    density = 1.0 if method == "dare" else 0.6 if method == "ties" else None  # below 1 the draws differ
    given = {} if density is None or method == "dare" else {"density": density}
    if method == "dare":
        theirs = "svd"
    report = rankwise.combine(two, tmp_path / "c", weights=WEIGHTS, method=method, density=density)  # pyright: ignore[reportArgumentType]
    peer = in_peft(two, theirs, **given)
    for path, found in deltas(tmp_path / "c").items():
        expected = peer.base_model.model.get_submodule(path).get_delta_weight("both")
        np.testing.assert_allclose(found, expected.detach(), rtol=0, atol=1e-6)
    for model in loaded(tmp_path / "c"):
        torch.testing.assert_close(outputs(model), outputs(peer), rtol=0, atol=1e-5)
    assert (report.error < 1e-6) == (method == "cat")


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """Each layer's s B A, as a folder holds it, in float64."""
    updates = read_updates(folder).updates.items()
    return {path: one.scale * one.pair.B[0].double().numpy() @ one.pair.A[0].double().numpy() for path, one in updates}


@pytest.mark.parametrize("settings", [{}, {"init": "pissa"}, {"variant": "lora-fa"}], ids=str)
def test_it_is_numpys_sum_and_truncation(tmp_path: Path, settings: dict[str, object]) -> None:
    """Also with adapters whose start is taken off the base, which are written at twice their rank, or whose A froze."""
    both = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, alpha=5.0, **settings)
    parts = [deltas(folder) for folder in both]
    rankwise.combine(both, tmp_path / "cat", weights=WEIGHTS, method="cat")
    rankwise.combine(both, tmp_path / "svd", weights=WEIGHTS, method="svd", rank=2)
    cat, svd = deltas(tmp_path / "cat"), deltas(tmp_path / "svd")
    for path in TARGETS:
        exact = sum(weight * part[path] for weight, part in zip(WEIGHTS, parts, strict=True))
        np.testing.assert_allclose(cat[path], exact, rtol=0, atol=1e-6)
        U, S, Vt = np.linalg.svd(exact, full_matrices=False)
        np.testing.assert_allclose(svd[path], U[:, :2] * S[:2] @ Vt[:2], rtol=0, atol=1e-6)


def heads(folder: Path, *changes: float) -> list[Path]:
    """Adapters with a layer that is trained whole, changed by so much."""
    folders: list[Path] = []
    for seed, change in enumerate(changes):
        model = ours(mlp(), target_modules=TARGETS, modules_to_save=["down"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(change if "down" in name else seed)
        folders.append(rankwise.save_adapter(model, folder / str(seed)))
    return folders


def test_heads_must_be_equal(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r'differ in ".*down.bias", which is trained in full.*two heads'):
        rankwise.combine(heads(tmp_path / "differ", 1.0, 2.0), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    equal = heads(tmp_path / "equal", 1.0, 1.0)
    rankwise.combine(equal, tmp_path / "c", weights=[0.5, 0.5], method="cat")
    combined, theirs = loaded(tmp_path / "c")
    files = load_file(tmp_path / "c" / "adapter_model.safetensors")
    assert torch.equal(files["base_model.model.down.weight"], mlp().down.weight + 1.0)
    torch.testing.assert_close(outputs(combined), outputs(theirs), rtol=0, atol=1e-5)
    assert all(not torch.allclose(outputs(combined), outputs(loaded(folder)[0])) for folder in equal)


def test_the_error_is_that_of_the_exact_sum(two: tuple[Path, Path], tmp_path: Path) -> None:
    """`linear` isn't the sum of the updates; the report says by how much."""
    exact = rankwise.combine(two, tmp_path / "cat", weights=WEIGHTS, method="cat")
    cut = rankwise.combine(two, tmp_path / "svd", weights=WEIGHTS, method="svd", rank=3)
    mixed = rankwise.combine(two, tmp_path / "linear", weights=WEIGHTS, method="linear")
    assert {update.r for update in exact.updates} == {4}
    written = {name: deltas(tmp_path / name) for name in ("cat", "svd", "linear")}
    for name, report in (("svd", cut), ("linear", mixed)):
        for update in report.updates:
            whole, part = written["cat"][update.path], written[name][update.path]
            assert update.error == pytest.approx(float(np.linalg.norm(whole - part) / np.linalg.norm(whole)), rel=1e-4)
    assert 0 < cut.error < mixed.error


def terms(n: int = 2, stack: int = 1) -> list[Term]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [Term(w, 1.5, draw(stack, 2, 5), draw(stack, 6, 2)) for w in (0.7, -0.4, 1.3)[:n]]


def test_ties_and_dare_before_truncation() -> None:
    """At full rank they are peft's functions of the same tensors and draws."""
    given = terms(3)
    updates, weights = [term.delta for term in given], torch.tensor([term.weight for term in given])
    A, B = methods.ties(given, 5, density=0.4)
    torch.testing.assert_close(B @ A, ties(updates, weights.double(), 0.4))
    A, B = methods.dare(given, 5, 0.4, stream(0, "x"))
    torch.manual_seed(stream(0, "x").initial_seed())
    torch.testing.assert_close(B @ A, dare_linear(updates, weights.double(), 0.4))


def test_the_same_seed_gives_the_same_adapter(two: tuple[Path, Path], tmp_path: Path) -> None:
    files = []
    for name, seed in (("c", 0), ("d", 0), ("e", 1)):
        rankwise.combine(two, tmp_path / name, method="dare", density=0.5, seed=seed)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1.0]}, "weights are 1 for 2 adapters"),
        ({"weights": [1.0, float("nan")]}, "weights are 1 nan for 2"),
        ({"method": "cat", "rank": 3}, "rank is 3; the rank of cat follows"),
        ({"method": "ties"}, "density is missing"),
        ({"method": "svd", "density": 0.5}, "density is 0.5; method ties and dare need it and no other"),
        ({"method": "dare", "density": 0.0}, "density is 0;"),
    ],
)
def test_settings_out_of_range(
    two: tuple[Path, Path], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rankwise.combine(two, tmp_path / "c", **settings)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "c").exists()


def test_one_adapter_and_an_unknown_method(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='method is "mean"; give one of linear, cat'):
        combining.check_settings(2, None, "mean", None, None)
    with pytest.raises(ConfigError, match="1 adapter is given"):
        rankwise.combine(two[:1], tmp_path / "c")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"target_modules": ["down"]}, 'adapts "block.down" and .* doesn\'t'),
        ({"r": 3}, "ranks 2, 3 at .* needs one rank"),
        ({"variant": "dora"}, "is of a DoRA adapter.*only plain LoRA"),
        ({"variant": "vera"}, "is of a VeRA adapter.*only plain LoRA"),
        ({"modules_to_save": ["down"]}, 'differ in ".*down.bias", which is trained in full'),
        ({"alpha": 0.0}, "alpha = 0"),
    ],
)
def test_adapters_that_have_no_sum(tmp_path: Path, other: dict[str, object], message: str) -> None:
    adapters = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, **other)
    with pytest.raises(RankwiseError, match=message):
        rankwise.combine(adapters, tmp_path / "c", method="linear")
    assert not (tmp_path / "c").exists()


def test_other_bases(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = mlp()
    with torch.no_grad():
        other.up.weight.add_(1.0)
    rankwise.save_adapter(ours(other, target_modules=TARGETS), tmp_path / "other")
    with pytest.raises(AdapterFileError, match='different weights of "up"'):
        rankwise.combine([two[0], tmp_path / "other"], tmp_path / "c")
    wide = nn.ModuleDict({"up": nn.Linear(7, 8), "block": nn.ModuleDict({"up": nn.Linear(8, 8)})})
    rankwise.save_adapter(ours(wide, target_modules=TARGETS), tmp_path / "wide")
    with pytest.raises(AdapterFileError, match=r'"up" has shape \(1, 8, 6\) .* and \(1, 8, 7\)'):
        rankwise.combine([two[0], tmp_path / "wide"], tmp_path / "c")


def test_the_command(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--weights", ".7", "-.4", "--method", "cat", "--out", str(tmp_path / "c")]
    assert main(["combine", *map(str, two), *given]) == 0
    assert "r = 4" in capsys.readouterr().out
    assert main(["combine", *map(str, two), "--weights", "1", "--out", str(tmp_path / "d")]) == 2
    assert "--weights are 1 for 2 adapters" in capsys.readouterr().err
