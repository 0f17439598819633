"""Two processes train what one does, and save it once and whole."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import two_processes
from rankwise.adapter_files import load_adapter, save_adapter
from two_processes import SETTINGS, batch, model_of, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def alone(name: str, dtype: torch.dtype) -> torch.nn.Module:
    model = model_of(dtype, **SETTINGS[name])
    train(model, *batch(dtype))
    return model


def about_the_base(folder: Path) -> str:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return file.metadata()["base"]


def loaded(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
    assert all(key.startswith("base_model.model.") for key in keys)
    assert not [key for key in keys if "module." in key.removeprefix("base_model.model.") or "_orig_mod" in key]
    load_adapter(model := model_of(dtype), folder)
    return model


def test_ddp_updates_as_one_process_does(tmp_path: Path) -> None:
    two_processes.run(two_processes.ddp, tmp_path)
    for name in SETTINGS:
        expected = alone(name, torch.float64).state_dict()
        found = loaded(tmp_path / name, torch.float64).state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("work", "names"),
    [(two_processes.fsdp2, ["lora", "dora", "head"]), (two_processes.fsdp2_replicated, ["lora", "dora"])],
)
def test_fsdp2_trains_and_saves_as_one_process_does(tmp_path: Path, work: object, names: list[str]) -> None:
    two_processes.run(work, tmp_path)  # pyright: ignore
    assert (tmp_path / "writes").read_text().splitlines() == [f"0 {name}" for name in names], "once, by the first"
    x = batch(torch.float32)[0]
    for name in names:
        whole = alone(name, torch.float32)
        expected = whole(x)
        assert about_the_base(tmp_path / name) == about_the_base(save_adapter(whole, tmp_path / f"{name}-whole"))
        for rank in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"{name}-{rank}.pt"), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded(tmp_path / name, torch.float32)(x), expected, rtol=1e-5, atol=1e-5)
