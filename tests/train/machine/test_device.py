"""The device that is chosen where the user leaves it open, and that names which aren't there are refused."""

import pytest
import torch

from rankwise.errors import ConfigError
from rankwise.train.machine.device import device_note, find_device


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    device = find_device("auto")
    assert device.type == expected
    (note,) = device_note("auto", device)
    assert {"cuda": "the GPU Test GPU", "mps": "untested", "cpu": "on the CPU"}[expected] in note


def test_a_named_device_is_taken_without_a_note() -> None:
    device = find_device("cpu")
    assert device == torch.device("cpu")
    assert device_note("cpu", device) == []


@pytest.mark.parametrize("name", ["frob", "meta:x", "cuda:99"])
def test_what_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f'There is no device "{name}" here; there is cpu'):
        find_device(name)
