"""The bytes that are written are safetensors' own; both ways of reading give the same; numbers that aren't finite."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.adapter_files import tensor_file
from rankwise.adapter_files.base.finite import first_not_finite
from rankwise.adapter_files.tensor_file import read_tensors, write_tensors
from rankwise.errors import AdapterFileError

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
USUAL = {f"{dtype}.{shape}": torch.ones(shape, dtype=dtype) for dtype in TYPES for shape in ((), (3,), (0, 2), (2, 3))}


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"b": '"\n\\', "a": "é"}])
def test_the_bytes_are_those_of_safetensors_with_metadata_in_order(tmp_path, metadata):
    flat = {'"\u00e9': torch.randn(4), **USUAL}
    write_tensors(tmp_path / "ours", flat, metadata)
    save_file(flat, tmp_path / "theirs", metadata=metadata)
    ours, theirs = (path.read_bytes() for path in (tmp_path / "ours", tmp_path / "theirs"))
    length = int.from_bytes(theirs[:8], "little")
    assert ours[:8] == theirs[:8]
    assert ours[8 + length :] == theirs[8 + length :]
    header = json.loads(ours[8 : 8 + length])
    assert header == json.loads(theirs[8 : 8 + length])
    assert [*header["__metadata__"]] == sorted(metadata)
    loaded = load_file(tmp_path / "ours")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in flat.items())


@pytest.mark.parametrize("at_once", [0, 1 << 26])
def test_both_ways_of_reading_give_the_same(tmp_path, monkeypatch, at_once):
    flat = {**USUAL, "eight bits": torch.ones(3).to(torch.float8_e4m3fn)} if at_once else USUAL
    write_tensors(tmp_path / "file", flat, {"b": "1", "a": "2"})
    monkeypatch.setattr(tensor_file, "_AT_ONCE", at_once)
    read, metadata = read_tensors(tmp_path / "file")
    assert [*read] == sorted(flat)
    assert metadata == {"a": "2", "b": "1"}
    for key, tensor in flat.items():
        assert read[key].dtype == tensor.dtype
        assert read[key].shape == tensor.shape
        assert torch.equal(read[key].float(), tensor.float())


@pytest.mark.parametrize("length", [0, 7, 40, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path, length):
    write_tensors(tmp_path / "file", USUAL, {"format": "pt"})
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:length])
    with pytest.raises(AdapterFileError, match="damaged or cut short"):
        read_tensors(tmp_path / "file")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [3, (1 << 16) + 1])
def test_the_first_tensor_that_is_not_finite_is_named(value, size):
    named = {f"{i}": torch.ones(size) for i in range(90)} | {"half": torch.ones(2).half(), "whole": torch.ones(2).int()}
    assert first_not_finite(named.items()) is None
    for name in ("half", "70", "20"):  # each before the one that was named last
        named[name].view(-1)[-1] = value
        assert first_not_finite(named.items()) == name
