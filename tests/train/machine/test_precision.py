"""What --precision and --dtype mean together, on each device."""

import pytest
import torch
from torch import nn

from rankwise.errors import ConfigError
from rankwise.train.machine import precision
from rankwise.train.machine.precision import check_precision, choose_precision, precision_note

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["with bfloat16", "without"])
def able(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "supported", lambda device: request.param)
    return request.param


def test_auto_is_float32_on_a_cpu_and_bf16_on_a_gpu_that_has_it(able: bool) -> None:
    assert choose_precision("auto", "float32", CPU) == "float32"
    assert choose_precision("auto", "float32", CUDA) == ("bf16" if able else "float32")
    assert choose_precision("float32", "float32", CUDA) == "float32"


def test_bf16_needs_a_device_for_it(able: bool) -> None:
    if able:
        assert choose_precision("bf16", "float32", CPU) == "bf16"
    else:
        with pytest.raises(ConfigError, match="This CPU has no AMX or AVX512-BF16, so --precision bf16"):
            choose_precision("bf16", "float32", CPU)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_computes_in_its_own_type(able: bool, dtype: str) -> None:
    assert choose_precision("auto", dtype, CUDA) == "float32"  # nothing is rounded beyond the base's own type
    with pytest.raises(ConfigError, match=f"--dtype {dtype} loads the base in {dtype}"):
        check_precision("float32", dtype)
    if dtype == "bfloat16":
        assert choose_precision("bf16", dtype, CPU) == "float32"
    else:
        with pytest.raises(ConfigError, match="--precision bf16 can't be had"):
            check_precision("bf16", dtype)


def test_the_note_says_what_was_chosen_or_what_bf16_would_save(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 2))
    monkeypatch.setattr(precision, "supported", lambda device: True)
    monkeypatch.setattr(precision, "speed_up", lambda layer: 2.04)
    assert precision_note("float32", "float32", model, CPU) == []
    (note,) = precision_note("auto", "float32", model, CPU)
    assert note == "--precision bf16 would run the products of linear layers 2.0 times as fast on this CPU."
    assert precision_note("auto", "float32", model.double(), CPU) == []
    (note,) = precision_note("auto", "bf16", model, CUDA)
    assert "bfloat16 (--precision auto)" in note


def test_speed_is_measured() -> None:
    assert 0 < precision.speed_up(nn.Linear(32, 32)) < 1000
