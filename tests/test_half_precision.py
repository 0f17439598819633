"""Whole sweeps over bases of half precision, which commands refuse on a CPU: what a GPU runs, but for the device."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rankwise
from rankwise import Training
from rankwise.adapter_files import load_adapter
from rankwise.report import read_results
from small_sweep import small_model, some_data


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.sweeps.arguments.check_model", lambda model: None)


def data(n: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, y = some_data(n, seed)
    return x.to(dtype), y


def loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return F.nll_loss(outputs, batch[1], reduction="none")


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return (outputs.argmax(-1) == batch[1]).to(outputs.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_sweep_learns_what_it_learns_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    found = {}
    for kind in (dtype, torch.float32):
        model = small_model().to(dtype).to(kind)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        sweep = rankwise.sweep(
            model,
            (1, 4),
            train=data(160, 0, kind),
            validation=data(200, 1, kind),
            test=data(1000, 2, kind),
            loss=loss,
            metric=accuracy,
            metric_name="accuracy",
            training=Training(lr=1.0, batch_size=16, epochs=4, clip=1.0),
            lrs=(0.01, 0.03),
            rungs=[2],
            plan="grid",
            seeds=1,
            progress="quiet",
            out=tmp_path / str(kind),
        )
        found[kind] = {c["name"]: c["mean"] for c in sweep.results["configurations"]}
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert found[dtype].keys() == found[torch.float32].keys() == {"r1", "r4", "full"}
    for name, mean in found[torch.float32].items():
        assert found[dtype][name] == pytest.approx(mean, abs=0.03), name
    runs = [run for run in read_results(tmp_path / str(dtype))["runs"] if run["adapter"]]
    model = small_model().to(dtype)
    load_adapter(model, tmp_path / str(dtype) / runs[-1]["adapter"])
    x, y = data(1000, 2, dtype)
    test = float((model(x).argmax(-1) == y).float().mean())
    assert test == pytest.approx(runs[-1]["metric"], abs=0.005)
