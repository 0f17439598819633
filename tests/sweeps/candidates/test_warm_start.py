"""A saved adapter as the starting point of a run: all that it trains, and what can't be one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise
from rankwise import LoRAConfig, Training
from rankwise.errors import AdapterFileError
from rankwise.sweeps.candidates.warm_start import candidate_from, read_start
from small_sweep import accuracy, loss, small_model, some_data

CONFIGS = {
    "plain": LoRAConfig(r=3, target_modules=["0"]),
    "dora": LoRAConfig(r=2, variant="dora"),
    "ranks": LoRAConfig(r=2, alpha=3.0, rank_pattern={"2": 1}, scaling="alpha/sqrt(r)"),
    "head": LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"]),
}


def saved(folder: Path, config: LoRAConfig) -> nn.Module:
    """The small model with a random adapter on it, which is saved."""
    model = small_model()
    rankwise.inject(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)
    rankwise.save_adapter(model, folder)
    return model


def outputs_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(some_data(9, 7)[0])


def sweep(model: nn.Module, configs: Any, **more: Any) -> rankwise.Sweep:
    settings: dict[str, Any] = {"training": Training(lr=1.0, batch_size=8, epochs=1), "lrs": (1e-9,)}
    settings |= {"plan": "grid", "seeds": 1, **more}
    return rankwise.sweep(
        model, configs, train=some_data(40, 0), loss=loss, metric=accuracy, baseline=False, progress="quiet", **settings
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_starts_there(tmp_path: Path, kind: str) -> None:
    expected = outputs_of(saved(tmp_path / "given", CONFIGS[kind]))
    base = small_model()
    found = sweep(base, [1, tmp_path / "given"])
    assert [c["name"] for c in found.results["configurations"]] == ["r1", "from-given"]
    found.put_on(base, "from-given-lr1e-09-s0")
    torch.testing.assert_close(outputs_of(base), expected, rtol=0, atol=1e-6)


def test_it_trains_on_from_there(tmp_path: Path) -> None:
    saved(tmp_path / "given", CONFIGS["head"])
    found = sweep(small_model(), [tmp_path / "given"], lrs=(0.01,), training=Training(lr=1.0, epochs=3, batch_size=8))
    state, begun = found.state("from-given-lr0.01-s0"), read_start(small_model(), tmp_path / "given").state
    assert state.keys() == begun.keys() == {"0.A", "0.B", "2.weight", "2.bias"}
    assert not any(torch.equal(value, begun[key]) for key, value in state.items())


def test_a_head_beside_an_adapter_without_one(tmp_path: Path) -> None:
    saved(tmp_path / "given", CONFIGS["plain"])
    training = Training(lr=1.0)
    candidate = candidate_from(small_model(), tmp_path / "given", training, (0.1,), head=("2",))
    assert candidate.modules_to_save == ("2",)
    assert candidate.start(0).keys() == {"0.A", "0.B"}


def test_the_base_is_as_before(tmp_path: Path) -> None:
    saved(tmp_path / "given", CONFIGS["head"])
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    read_start(model, tmp_path / "given")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_can_be_no_start(tmp_path: Path) -> None:
    saved(tmp_path / "bias", LoRAConfig(r=1, target_modules=["0"], bias="all"))
    with pytest.raises(AdapterFileError, match="has parts that a pack doesn't train: biases"):
        read_start(small_model(), tmp_path / "bias")
    saved(tmp_path / "given", CONFIGS["plain"])
    other = small_model()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    with pytest.raises(AdapterFileError, match="base"):
        sweep(other, [tmp_path / "given"])
    with pytest.raises(AdapterFileError, match=r"has no adapter_config\.json"):
        sweep(small_model(), [tmp_path / "nowhere"])
