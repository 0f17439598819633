"""Adapter files that are damaged, foreign, or made for another model: each is refused with its reason."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapted_models import mlp, ours
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter, write_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig


@pytest.fixture
def saved(tmp_path):
    return save_adapter(ours(mlp()), tmp_path)


def edit(folder, **fields):
    """Change settings, and drop the checksums: as a file of another tool."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    retensor(folder, lambda tensors: None)


def retensor(folder, change):
    """Rewrite the tensor file as another tool would: without a checksum."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UP_A, UP_B = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP_B), f'has no "{UP_B}", the other half'),
        (lambda t: (t.pop(UP_A), t.pop(UP_B)), f'no tensor "{UP_A}", but its target_modules take in "up"'),
        (lambda t: t.update({UP_A: torch.ones(2, 9)}), 'lora_A of "up" has shape (2, 9); the base layer needs (r, 6).'),
        (lambda t: t.update({UP_B: torch.ones(9, 2)}), 'lora_B of "up" has shape (9, 2); the base layer needs (8, r).'),
        (lambda t: t.update({UP_B: torch.ones(8, 3)}), 'lora_A of "up" has shape (2, 6), lora_B (8, 3)'),
        (
            lambda t: t.update({UP_A: torch.ones(3, 6), UP_B: torch.ones(8, 3)}),
            'lora_A of "up" has rank 3; adapter_config.json says r = 2',
        ),
        (lambda t: t.update({UP_A: torch.ones(2, 6, 1)}), 'lora_A of "up" has shape (2, 6, 1), lora_B (8, 2)'),
        (
            lambda t: t.update({UP_A: torch.ones(2, 6, 1), UP_B: torch.ones(8, 2, 1)}),
            'lora_A of "up" has shape (2, 6, 1); the base layer needs (r, 6).',
        ),
        (lambda t: t.update({UP_A: torch.ones(2)}), "shape (2,) and type torch.float32; a matrix"),
        (lambda t: t.update({UP_A: torch.ones(2, 6, dtype=torch.int32)}), "a matrix of floating-point numbers"),
        (lambda t: t.update({"x": torch.ones(1)}), 'tensor "x" of no use here'),
        (lambda t: t.update({"up.lora_A.weight": torch.ones(1)}), 'It lacks the prefix "base_model.model."'),
        (lambda t: t.update({"base_model.model.up.lora_A.default.weight": torch.ones(1)}), "inside the key"),
        (lambda t: t.update({"base_model.model.up.lora_magnitude_vector": torch.ones(1)}), "DoRA"),
        (
            lambda t: t.update(
                {"base_model.model.upp.lora_A.weight": t[UP_A], "base_model.model.upp.lora_B.weight": t[UP_B].clone()}
            ),
            'tensors for "upp", which the model lacks. Did you mean "up"? Was it trained on another model?',
        ),
        (
            lambda t: t.update(
                {"base_model.model.block.lora_A.weight": t[UP_A], "base_model.model.block.lora_B.weight": t[UP_B]}
            ),
            'tensors for "block", a ModuleDict here: its class is not in LAYER_TYPES',
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit(saved, change, message):
    retensor(saved, lambda t: (change(t), t.update({key: value.clone() for key, value in t.items()})))
    model = mlp()
    before = list(model.state_dict())
    with pytest.raises(AdapterFileError, match=re.escape(message)):
        load_adapter(model, saved)
    assert list(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_qalora", True),
        ("peft_type", "IA3"),
        ("init_lora_weights", "lora_ga"),
        ("layer_replication", [[0, 1]]),
    ],
)
def test_fields_that_change_the_maths_are_refused(saved, field, value):
    edit(saved, **{field: value})
    with pytest.raises(AdapterFileError, match=f"sets {field} = .*changes the adapter's function and isn't supported"):
        read_adapter(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "8"),
        ("r", 0),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("lora_dropout", [0.1]),
        ("use_rslora", 1),
        ("target_modules", {"a": 1}),
        ("rank_pattern", {"a": "b"}),
        ("alpha_pattern", [1]),
        ("bias", ["all"]),
        ("modules_to_save", "down"),
        ("layers_to_transform", ["0"]),
    ],
)
def test_fields_of_the_wrong_type(saved, field, value):
    edit(saved, **{field: value})
    with pytest.raises(AdapterFileError, match=f"sets {field} = .* is needed"):
        read_adapter(saved)


def test_settings_out_of_range_and_patterns_that_are_none(saved):
    edit(saved, lora_dropout=2.0)
    with pytest.raises(AdapterFileError, match=r"adapter_config.json can't be used: dropout is 2.0"):
        read_adapter(saved)
    edit(saved, lora_dropout=0.0, alpha_pattern={"(": 1})
    with pytest.raises(AdapterFileError, match="no regular expression"):
        read_adapter(saved)
    edit(saved, alpha_pattern={}, target_modules="(")
    with pytest.raises(AdapterFileError, match="no regular expression"):
        load_adapter(mlp(), saved)


def test_unknown_fields_are_said(saved):
    edit(saved, brand_new=1)
    with pytest.warns(UserWarning, match="not known here and pass unused: brand_new"):
        load_adapter(mlp(), saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}"])
def test_json_that_is_no_adapter(saved, text):
    (saved / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterFileError, match=r"is damaged|an object is needed|has no .peft_type"):
        read_adapter(saved)


def test_bytes_that_are_no_text(saved):
    (saved / "adapter_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AdapterFileError, match="is damaged"):
        read_adapter(saved)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_tensor_file_cut_short(saved, length):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(AdapterFileError, match="damaged or cut short"):
        read_adapter(saved)


def test_a_changed_number_does_not_fit_the_checksum(saved):
    path = saved / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match="don't fit its checksum"):
        read_adapter(saved)


def test_missing_files_and_where_to_look(saved, tmp_path):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterFileError, match=r"no adapter_model.safetensors, only adapter_model.bin: a pickle"):
        read_adapter(saved)
    save_adapter(ours(mlp()), tmp_path / "outer" / "french")
    with pytest.raises(AdapterFileError, match=r"has no adapter_config.json.* There is one in .*french"):
        read_adapter(tmp_path / "outer")


def test_a_smaller_adapter_on_a_larger_model(tmp_path):
    save_adapter(ours(nn.Sequential(nn.Linear(2, 2))), tmp_path)
    edit(tmp_path, target_modules=["0", "1"])
    with pytest.raises(AdapterFileError, match='target_modules take in "1" of this model'):
        load_adapter(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path)


def test_a_module_under_two_names_can_have_one_pair_only(tmp_path):
    shared = nn.Linear(2, 2)
    pair = (torch.ones(1, 2), torch.ones(2, 1))
    write_adapter(tmp_path, LoRAConfig(r=1), {"a": pair, "b": pair})
    with pytest.raises(AdapterFileError, match='for "a" and for "b", which are one module here'):
        load_adapter(nn.ModuleDict({"a": shared, "b": shared}), tmp_path)
