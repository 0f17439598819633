"""Checksums: every bit of a file counts, and another base is told apart."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from adapted_models import mlp, ours
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter, write_adapter
from rankwise.adapter_files.base.checksums import BaseRecord
from rankwise.adapter_files.folder import FileBase
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, base_state_dict, eject, merge

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def small(tmp_path):
    """The smallest adapter there is, with a base: few bytes, so that each can be tried."""
    pair = (torch.ones(1, 2), torch.ones(1, 1))
    return write_adapter(
        tmp_path, LoRAConfig(r=1), {"f": pair}, base=FileBase(record=BaseRecord({"f": torch.ones(1, 2)}))
    )


@pytest.mark.parametrize(
    ("name", "bits"),
    [(CONFIG, 1), (TENSORS, 1), *(pytest.param(name, 8, marks=pytest.mark.slow) for name in (CONFIG, TENSORS))],
)
def test_every_byte_and_bit_counts(small, name, bits):
    path = small / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8) if bits == 8 else (place * 5 % 8,):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            with pytest.raises(AdapterFileError):
                read_adapter(small)
    path.write_bytes(whole)
    assert read_adapter(small)[0].r == 1


def test_white_space_between_settings_does_not_count(small):
    path = small / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4).replace("\n", "\r\n"))
    assert read_adapter(small)[0].r == 1


def test_edited_settings_can_be_taken_on_purpose(small):
    path = small / CONFIG
    path.write_text(path.read_text().replace('"lora_alpha": 32', '"lora_alpha": 16'))
    with pytest.raises(
        AdapterFileError, match="doesn't fit the checksum in the tensor file: it is damaged, was edited"
    ):
        read_adapter(small)
    assert read_adapter(small, strict=False)[0].alpha == 16


def test_another_base_is_refused_by_its_first_layer_and_listed(tmp_path):
    save_adapter(ours(mlp()), tmp_path)
    other = mlp()
    nn.init.normal_(other.block["up"].weight)
    nn.init.normal_(other.down.weight)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        AdapterFileError, match=r'weight of "block.up" isn\'t the one .* was saved over. Is this another'
    ):
        load_adapter(other, tmp_path)
    assert list(other.state_dict()) == list(before)
    report = load_adapter(other, tmp_path, strict=False)
    assert ['weight of "block.up"' in line for line in report.findings] == [True]
    assert 'weight of "block.up"' in str(report)


def test_a_base_trained_on_a_little_is_told_apart(tmp_path):
    save_adapter(ours(mlp()), tmp_path)
    other = mlp()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 1e-6)
    with pytest.raises(AdapterFileError, match='weight of "up"'):
        load_adapter(other, tmp_path)


def test_a_merged_model_saves_the_checksum_of_its_base(tmp_path):
    model = ours(mlp())
    merge(model)
    save_adapter(model, tmp_path)
    assert not load_adapter(mlp(), tmp_path).findings
    eject(model)
    assert not load_adapter(model, tmp_path).findings


@pytest.mark.parametrize(
    ("saved", "here", "compared"),
    [
        (torch.float32, torch.float64, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float16, torch.float32, True),
        (torch.float32, torch.bfloat16, False),
        (torch.float16, torch.bfloat16, False),
    ],
)
def test_bases_of_another_type(saved, here, compared, tmp_path):
    save_adapter(ours(mlp().to(saved)), tmp_path)
    report = load_adapter(mlp().to(saved).to(here), tmp_path)
    text = f"8 weights of the base weren't compared: {saved} when the adapter was saved, {here} here."
    assert report.notes == ([] if compared else [text.replace("torch.", "")])


def test_pefts_files_have_none_and_pass(tmp_path):
    save_adapter(ours(mlp()), tmp_path)
    path = tmp_path / TENSORS
    save_file(load_file(path), path)
    other = mlp()
    nn.init.normal_(other.up.weight)
    assert not load_adapter(other, tmp_path).findings


def test_damaged_checksums_of_the_base(small):
    path = small / TENSORS
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for damaged in ("{", "[]", '{"f": 1}'):
        save_file(load_file(path), path, metadata={"format": "pt", "base": damaged})
        with pytest.raises(AdapterFileError, match="don't fit its checksum"):
            read_adapter(small)
    assert metadata["base"].startswith('{"f": "float32 ')


def test_a_large_weight_is_sampled(tmp_path):
    wide = ours(nn.Linear(1000, 3))
    save_adapter(wide, tmp_path)
    again = nn.Linear(1000, 3)
    again.load_state_dict(base_state_dict(wide))
    with torch.no_grad():
        again.weight[0, 1] += 1  # between the entries that are looked at
    assert not load_adapter(again, tmp_path).findings
    eject(again)
    with torch.no_grad():
        again.weight[0, 0] += 1
    with pytest.raises(AdapterFileError, match="isn't the one"):
        load_adapter(again, tmp_path)
