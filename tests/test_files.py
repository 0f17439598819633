"""Adapter files, held against the real PEFT on outputs and keys, and every way a file can be wrong."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM

from rankwise.errors import AdapterError, AdapterFileError, OutputError
from rankwise.files import load_adapter, read_adapter, save_adapter, write_adapter
from rankwise.lora import LoRAConfig, adapter_tensors, inject

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class MLP(nn.Module):
    """Nested, and with names that are suffixes of one another."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.block = nn.ModuleDict({"up": nn.Linear(8, 8), "down": nn.Linear(8, 6)})
        self.down = nn.Linear(6, 3)

    def forward(self, x):
        return self.down(self.block["down"](self.block["up"](self.up(x).relu()).relu()))


def mlp():
    torch.manual_seed(0)
    return MLP().eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return BertModel(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)).eval()


def outputs(model):
    generator = torch.Generator().manual_seed(3)
    inner = model.base_model.model if isinstance(model, PeftModel) else model
    with torch.no_grad():
        if isinstance(inner, MLP):
            return model(torch.randn(5, 6, generator=generator))
        return model(torch.randint(20, (2, 7), generator=generator))[0]


def fill(parameters):
    """Give every matrix of an adapter values, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3, generator=generator)


def ours(model, **settings):
    inject(model, LoRAConfig(**{"r": 2, "alpha": 6.0, **settings}))
    fill(parameter for pair in adapter_tensors(model).values() for parameter in pair)
    return model


def theirs(model, **settings):
    wrapped = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 6, **settings}))
    fill(parameter for name, parameter in wrapped.named_parameters() if "lora_" in name)
    return wrapped.eval()


def keys(folder):
    return set(load_file(Path(folder) / "adapter_model.safetensors"))


MODELS = {"mlp": mlp, "llama": llama, "bert": bert, "gpt2": gpt2}

OURS = [
    ("mlp", {}),
    ("mlp", {"target_modules": "re:up"}),
    ("mlp", {"rank_pattern": {"block.up": 4, "down": 1}, "alpha_pattern": {"re:up": 3.0}}),
    ("mlp", {"rank_pattern": {"re:up": 5}, "scaling": "alpha/sqrt(r)", "dropout": 0.1}),
    ("llama", {}),
    ("llama", {"target_modules": ["q_proj", "layers.1.mlp.up_proj"], "alpha_pattern": {"layers.1.*": 1.5}}),
    ("llama", {"rank_pattern": {"layers.0.self_attn.q_proj": 4, "k_proj": 3}, "scaling": "alpha/sqrt(r)"}),
    ("bert", {"target_modules": ["query", "value", "output.dense"]}),
    ("gpt2", {}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "settings"), OURS)
def test_peft_runs_ours(model, settings, tmp_path):
    if "layers.1.*" in settings.get("alpha_pattern", {}):
        settings = {**settings, "alpha_pattern": {"*.layers.1.*": 1.5}}
    adapted = ours(MODELS[model](), **settings)
    expected = outputs(adapted)
    save_adapter(adapted, tmp_path)
    loaded = PeftModel.from_pretrained(MODELS[model](), str(tmp_path))
    torch.testing.assert_close(outputs(loaded), expected, rtol=0, atol=1e-6)
    loaded.save_pretrained(str(tmp_path / "again"))
    assert keys(tmp_path / "again") == keys(tmp_path)

    again = MODELS[model]()
    load_adapter(again, tmp_path)
    assert torch.equal(outputs(again), expected)


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
    torch.testing.assert_close(outputs(loaded), outputs(wrapped), rtol=0, atol=1e-6)
    save_adapter(loaded, tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path)


def test_the_files_by_their_letters(tmp_path):
    A, B = torch.ones(1, 3), torch.ones(2, 1)
    write_adapter(tmp_path, LoRAConfig(r=1, alpha=2.0), {"fc.0": (A, B)}, base_name="base/model")
    text = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(text) == {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "base/model", "bias": "none",
        "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 2, "lora_bias": False, "lora_dropout": 0.0,
        "modules_to_save": None, "peft_type": "LORA", "r": 1, "rank_pattern": {}, "revision": None,
        "target_modules": ["fc.0"], "task_type": None, "use_dora": False, "use_rslora": False,
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
    import tempfile

    alphas = {name: float(data.draw(st.integers(-3, 3))) for name in ranks}
    tensors = {name: (torch.randn(r, 3), torch.randn(2, r)) for name, r in ranks.items()}
    config = LoRAConfig(alpha=2.5, alpha_pattern={f"re:{re.escape(name)}": alpha for name, alpha in alphas.items()})
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(folder, config, tensors)
        read, found = read_adapter(folder)
        from rankwise.lora.targets import matching_values

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
    assert torch.equal(again(torch.ones(1, 3)), layer(torch.ones(1, 3)))
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
    with pytest.raises(OutputError, match="can't be written to .*file"):
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


# Damaged and foreign files


@pytest.fixture
def saved(tmp_path):
    return save_adapter(ours(mlp()), tmp_path)


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


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
        (lambda t: t.update({UP_A: torch.ones(2, 6, 1)}), "shape (2, 6, 1) and type torch.float32; a matrix"),
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
            'tensors for "block", a ModuleDict here: only Linear and Conv1D',
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
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["down"]),
        ("peft_type", "IA3"),
        ("layers_to_transform", [0]),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
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
    with pytest.raises(AdapterFileError, match=r"no adapter_model.safetensors. adapter_model.bin is a pickle"):
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
