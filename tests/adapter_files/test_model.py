"""Adapter files, compared with the real PEFT on outputs and keys; and what an interrupted save leaves."""

import json
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from adapted_models import MODELS, mlp, ours, outputs, theirs
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter, write_adapter
from rankwise.errors import AdapterError, AdapterFileError, OutputError
from rankwise.lora import LoRAConfig
from rankwise.lora.targets.patterns import matching_values
from rounding import alike

# PEFT calls what transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def assert_alike(one, other):
    """The same function: equal in float32 up to its rounding, and in float64 up to a millionth of that."""
    torch.testing.assert_close(outputs(one), outputs(other), rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs(one.double()), outputs(other.double()), rtol=0, atol=1e-12)


def keys(folder):
    return set(load_file(Path(folder) / "adapter_model.safetensors"))


OURS = [
    ("mlp", {}),
    ("mlp", {"target_modules": "re:up"}),
    ("mlp", {"rank_pattern": {"block.up": 4, "down": 1}, "alpha_pattern": {"re:up": 3.0}}),
    ("mlp", {"rank_pattern": {"re:up": 5}, "scaling": "alpha/sqrt(r)", "dropout": 0.1}),
    ("llama", {}),
    ("llama", {"target_modules": ["q_proj", "layers.1.mlp.up_proj"], "alpha_pattern": {"*.layers.1.*": 1.5}}),
    ("llama", {"rank_pattern": {"layers.0.self_attn.q_proj": 4, "k_proj": 3}, "scaling": "alpha/sqrt(r)"}),
    ("bert", {"target_modules": ["query", "value", "output.dense"]}),
    ("gpt2", {}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "settings"), OURS)
def test_peft_runs_ours(model, settings, tmp_path):
    adapted = ours(MODELS[model](), **settings)
    expected = outputs(adapted)
    save_adapter(adapted, tmp_path)
    loaded = PeftModel.from_pretrained(MODELS[model](), str(tmp_path))
    loaded.save_pretrained(str(tmp_path / "again"))
    assert keys(tmp_path / "again") == keys(tmp_path)

    again = MODELS[model]()
    load_adapter(again, tmp_path)
    assert alike(outputs(again), expected)
    assert_alike(loaded, again)


THEIRS = [
    ("mlp", {"target_modules": ["up", "down"]}),
    ("mlp", {"target_modules": r"block\..*", "rank_pattern": {"down": 4}, "alpha_pattern": {"up": 1}}),
    ("mlp", {"target_modules": ["up"], "rank_pattern": {"^up": 5}, "alpha_pattern": {"^up": 3, "block.u.": 7}}),
    ("mlp", {"target_modules": ["up", "down"], "exclude_modules": ["block.down"], "use_rslora": True}),
    ("llama", {"target_modules": "all-linear", "lora_dropout": 0.1}),
    ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"layers.0.*": 3}}),
    ("bert", {"target_modules": ["query", "value"], "alpha_pattern": {r"layer\.1.*": 2}}),
    ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "settings"), THEIRS)
def test_ours_runs_pefts(model, settings, tmp_path):
    wrapped = theirs(MODELS[model](), **settings)
    wrapped.save_pretrained(str(tmp_path))
    loaded = MODELS[model]()
    load_adapter(loaded, tmp_path)
    save_adapter(loaded, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)
    assert_alike(loaded, wrapped)


def test_the_files_by_their_letters(tmp_path):
    A, B = torch.ones(1, 3), torch.ones(2, 1)
    write_adapter(tmp_path, LoRAConfig(r=1, alpha=2.0), {"fc.0": (A, B)}, base_name="base/model")
    text = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(text) == {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "base/model", "bias": "none",
        "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 2, "lora_bias": False, "lora_dropout": 0.0,
        "modules_to_save": None, "peft_type": "LORA", "r": 1, "rank_pattern": {}, "revision": None,
        "target_modules": ["fc.0"], "target_parameters": None, "task_type": None,
        "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert len(file.metadata()["sha256"]) == 64
        assert set(file.keys()) == {
            "base_model.model.fc.0.lora_A.weight",
            "base_model.model.fc.0.lora_B.weight",
        }


@given(
    st.dictionaries(
        st.from_regex(r"[a-c](\.[a-c0-2]){0,2}", fullmatch=True), st.integers(1, 4), min_size=1, max_size=6
    ),
    st.data(),
)
def test_what_is_written_is_read(ranks, data):
    alphas = {name: float(data.draw(st.integers(-3, 3))) for name in ranks}
    tensors = {name: (torch.randn(r, 3), torch.randn(2, r)) for name, r in ranks.items()}
    config = LoRAConfig(alpha=2.5, alpha_pattern={f"re:{re.escape(name)}": alpha for name, alpha in alphas.items()})
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(folder, config, tensors)
        read, found = read_adapter(folder)
    assert {**dict.fromkeys(ranks, read.alpha), **matching_values(read.alpha_pattern, ranks)} == alphas
    assert {**dict.fromkeys(ranks, read.r), **matching_values(read.rank_pattern, ranks)} == ranks
    assert found.keys() == tensors.keys()
    assert all(torch.equal(a, b) for name in ranks for a, b in zip(found[name], tensors[name], strict=True))


def test_a_slice_of_a_stack_and_types_are_kept(tmp_path):
    stack = torch.randn(3, 2, 4, dtype=torch.bfloat16)
    write_adapter(tmp_path, LoRAConfig(r=2), {"a": (stack[0], stack[1].mT), "b": (stack[2], stack[0].mT)})
    _, tensors = read_adapter(tmp_path)
    assert torch.equal(tensors["b"][1], stack[0].mT)
    assert tensors["a"][0].dtype == torch.bfloat16


def test_the_model_itself_as_the_layer(tmp_path):
    layer, again = ours(nn.Linear(3, 2)), nn.Linear(3, 2)
    save_adapter(layer, tmp_path)
    again.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    load_adapter(again, tmp_path, "french")
    assert alike(again(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    assert list(again.lora.scale) == ["french"]


def test_names_that_are_suffixes_select_no_more_in_peft(tmp_path):
    save_adapter(ours(mlp(), target_modules="re:up"), tmp_path / "one")
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"] == "up"
    save_adapter(ours(mlp(), target_modules="block.up"), tmp_path / "two")
    assert json.loads((tmp_path / "two" / "adapter_config.json").read_text())["target_modules"] == ["block.up"]


# Interrupted saves


@pytest.mark.parametrize("failing", range(1, 4))
@pytest.mark.parametrize("old", [False, True])
def test_an_interrupted_save_leaves_the_old_one_or_none(failing, old, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    first = {"fc": (torch.zeros(1, 2), torch.zeros(2, 1))}
    if old:
        write_adapter(folder, LoRAConfig(r=1), first)
    calls = iter(range(1, 10))

    def interrupted(real):
        def call(*args, **kwargs):
            if next(calls) == failing:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", interrupted(os.fsync))
    if failing > 2:
        calls = iter(range(2, 10))
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        monkeypatch.setattr(os, "replace", interrupted(os.replace))
    with pytest.raises(KeyboardInterrupt):
        write_adapter(folder, LoRAConfig(r=2), {"fc": (torch.ones(2, 2), torch.ones(2, 2))})
    monkeypatch.undo()
    if failing > 2 or not old:
        with pytest.raises(AdapterFileError, match=r"has no adapter_config.json"):
            read_adapter(folder)
    else:
        assert torch.equal(read_adapter(folder)[1]["fc"][0], first["fc"][0])
    assert not list(tmp_path.glob("adapter/.saving-*"))
    write_adapter(folder, LoRAConfig(r=1), first)
    assert read_adapter(folder)[0].r == 1


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_adapter(ours(mlp()), tmp_path)
    save_adapter(ours(mlp()), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"can't be written to .*file"):
        save_adapter(ours(mlp()), tmp_path / "file")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({}, "no tensors to write"), ({"a": (torch.ones(2, 3), torch.ones(3, 1))}, r'A of "a" has shape \(2, 3\)')],
)
def test_tensors_that_make_no_adapter(tensors, message, tmp_path):
    with pytest.raises(AdapterFileError, match=message):
        write_adapter(tmp_path / "new", LoRAConfig(), tensors)
    assert not (tmp_path / "new").exists()


def test_an_adapter_the_model_lacks(tmp_path):
    with pytest.raises(AdapterError, match='no adapter "other"'):
        save_adapter(ours(mlp()), tmp_path, "other")


def test_equal_adapters_make_equal_files(tmp_path: Path) -> None:
    # safetensors orders metadata by a hash that is another for every file.
    for i in range(10):
        write_adapter(tmp_path / str(i), LoRAConfig(r=1), {"a": (torch.ones(1, 3), torch.ones(2, 1))})
    assert len({(tmp_path / str(i) / "adapter_model.safetensors").read_bytes() for i in range(10)}) == 1
