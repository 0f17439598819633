"""Strict on load, lenient on request; what a newer PEFT wrote; old pickles; sub-folders."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from adapted_models import MODELS, mlp, outputs, theirs
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.errors import AdapterFileError
from rounding import alike

# PEFT calls what transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@pytest.fixture
def saved(tmp_path):
    """A file of PEFT's."""
    theirs(mlp(), target_modules=["up", "down"]).save_pretrained(str(tmp_path))
    return tmp_path


def edit(folder, **fields):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def retensor(folder, change):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / TENSORS)


UP_A, UP_B = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message", "left"),
    [
        (lambda t: t.pop(UP_B), f'has no "{UP_B}", the other half', 3),
        (lambda t: (t.pop(UP_A), t.pop(UP_B)), f'no tensor "{UP_A}", but its target_modules take in "up"', 3),
        (lambda t: t.update({UP_A: torch.ones(2, 9)}), 'lora_A of "up" has shape (2, 9); the base layer needs', 3),
        (lambda t: t.update({"x": torch.ones(1)}), 'tensor "x" of no use here', 4),
        (lambda t: t.update({UP_A: torch.ones(12)}), "shape (12,) and type torch.float32; a matrix of", 3),
        (lambda t: t.update({UP_A.replace("up", "upp"): t[UP_A], UP_B.replace("up", "upp"): t[UP_B]}), '"upp"', 4),
        (lambda t: t.update({UP_A: torch.ones(3, 6), UP_B: torch.ones(8, 3)}), "has rank 3; adapter_config.json", 4),
    ],
)
def test_what_does_not_fit_is_listed_on_request(saved, change, message, left):
    retensor(saved, change)
    with pytest.raises(AdapterFileError, match=re.escape(message)):
        load_adapter(mlp(), saved)
    report = load_adapter(mlp(), saved, strict=False)
    assert any(message in line for line in report.findings)
    assert len(report.adapted) == left
    assert message in str(report)


def test_where_nothing_fits_leniency_does_not_help(saved):
    with pytest.raises(AdapterFileError, match=r'Nothing of .* fits the model: .*"block.down", which the model lacks'):
        load_adapter(nn.Sequential(nn.Linear(2, 2)), saved, strict=False)


def test_a_damaged_file_is_an_error_always(saved):
    path = saved / TENSORS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterFileError, match="damaged or cut short"):
        load_adapter(mlp(), saved, strict=False)


# Fields


def test_unknown_fields_are_kept_and_written_back(saved, tmp_path):
    edit(saved, brand_new={"a": [1]}, task_type="CAUSAL_LM", revision="main", base_model_name_or_path="hub/name")
    model = mlp()
    with pytest.warns(UserWarning, match="not known here and pass unused: brand_new"):
        load_adapter(model, saved)
    save_adapter(model, tmp_path / "again")
    fields = json.loads((tmp_path / "again" / CONFIG).read_text())
    kept = {
        "brand_new": {"a": [1]},
        "task_type": "CAUSAL_LM",
        "revision": "main",
        "base_model_name_or_path": "hub/name",
    }
    assert {key: fields[key] for key in kept} == kept
    assert fields.keys() >= json.loads((saved / CONFIG).read_text()).keys()


def test_a_name_for_the_base_that_is_given_wins(saved, tmp_path):
    edit(saved, base_model_name_or_path="old")
    model = mlp()
    load_adapter(model, saved)
    save_adapter(model, tmp_path / "again", base_name="new")
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["base_model_name_or_path"] == "new"


@pytest.mark.filterwarnings("ignore:.*pass unused")
@pytest.mark.parametrize(("field", "value"), [("use_tomorrow", True), ("tomorrow_config", {"a": 1})])
def test_unknown_variants_are_refused_by_name(saved, field, value):
    edit(saved, **{field: value})
    with pytest.raises(
        AdapterFileError, match=f"sets {field} = .*its name says that it changes the adapter's function"
    ):
        load_adapter(mlp(), saved)
    assert field in load_adapter(mlp(), saved, strict=False).findings[0]


@pytest.mark.filterwarnings("ignore:.*pass unused")
def test_unknown_variants_that_are_off_pass(saved):
    edit(saved, use_tomorrow=False, tomorrow_config=None)
    assert not load_adapter(mlp(), saved).findings


def test_known_variants_are_refused_even_so(saved):
    edit(saved, use_qalora=True)
    with pytest.raises(AdapterFileError, match="sets use_qalora = true"):
        load_adapter(mlp(), saved, strict=False)


def test_layers_to_transform(tmp_path):
    settings = {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}
    wrapped = theirs(MODELS["llama"](), **settings)
    wrapped.save_pretrained(str(tmp_path))
    model = MODELS["llama"]()
    report = load_adapter(model, tmp_path)
    assert {target.name.split(".")[2] for target in report.adapted} == {"1"}
    torch.testing.assert_close(outputs(model), outputs(wrapped), rtol=0, atol=1e-6)


PATTERNS = [
    *("(a+)+b", "(.*.*)*x", "(x|y+){2,}", ".*.*.*.*.*.*x", "(", "a{999999999999}"),
    *(
        "(.|.)*x",
        "(.?){40}x",
        "(?i)(aa|Aa)*x",
        "(aa|aa|b){20}x",
        "(?=(a*)*)b",
        "(?:x|(x|x))++y",
        "((a{0,9}){0,9}){0,9}",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "modules_to_save"])
def test_patterns_that_could_take_for_ever_are_refused(saved, pattern, field):
    edit(saved, **{field: {"rank_pattern": {pattern: 2}, "modules_to_save": [pattern]}.get(field, pattern)})
    with pytest.raises(AdapterFileError, match=r"can match in too many ways|no regular expression"):
        load_adapter(mlp(), saved)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp|ffn|dense).*?(?:q_proj|k_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]"
        r"{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))|up|down",
        r"^(?!.*vision).*(?:up|down)$",
        r"(?:layers\.\d+\.)?(up|down)",
        r"(u|d)(p|own)",
    ],
)
def test_patterns_that_tools_write_are_read(saved, pattern):
    edit(saved, target_modules=pattern)
    load_adapter(mlp(), saved)


# Pickles


def test_a_pickle_is_read_on_request_only(tmp_path):
    wrapped = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["up"])).eval()
    wrapped.save_pretrained(str(tmp_path), safe_serialization=False)
    with pytest.raises(AdapterFileError, match=r"only adapter_model.bin: a pickle, an unsafe format"):
        load_adapter(mlp(), tmp_path)
    model = mlp()
    load_adapter(model, tmp_path, allow_pickle=True)
    torch.testing.assert_close(outputs(model), outputs(wrapped), rtol=0, atol=1e-6)


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Evil()}, "is damaged, or holds more than tensors"),
        ([torch.ones(1)], "holds a list; a state dict"),
        ({"a": 1}, "holds 'a': int"),
        ({1: torch.ones(1)}, "holds 1: Tensor"),
    ],
)
def test_a_pickle_of_something_else(saved, content, message, capsys):
    (saved / TENSORS).unlink()
    torch.save(content, saved / PICKLE)
    with pytest.raises(AdapterFileError, match=message):
        read_adapter(saved, allow_pickle=True)
    assert capsys.readouterr().out == ""


# Folders


def test_pefts_sub_folders(tmp_path):
    wrapped = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["up"]), adapter_name="french")
    wrapped.save_pretrained(str(tmp_path))
    assert (tmp_path / "french" / CONFIG).exists()
    model = mlp()
    load_adapter(model, tmp_path, "french")
    load_adapter(model, tmp_path / "french", "again")
    with pytest.raises(AdapterFileError, match=r"no adapter_config.json.* There is one in .*french"):
        load_adapter(model, tmp_path, "german")


def test_a_layer_whose_magnitudes_do_not_fit_stays_the_bases(tmp_path):
    theirs(mlp(), target_modules=["up", "down"], use_dora=True).save_pretrained(str(tmp_path))
    key = UP_A.replace("lora_A.weight", "lora_magnitude_vector")
    retensor(tmp_path, lambda t: t.update({key: torch.ones(7)}))
    model = mlp()
    report = load_adapter(model, tmp_path, strict=False)
    assert {target.name for target in report.adapted} == {"block.up", "block.down", "down"}
    assert 'The magnitude of "up" has shape (7,)' in report.findings[0]
    x = torch.randn(2, 6)
    assert alike(model.up(x), mlp().up(x))
