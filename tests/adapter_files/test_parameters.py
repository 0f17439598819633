"""Files of adapted parameters (`target_parameters`), compared with the real PEFT on outputs and keys."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapted_models import fill
from rankwise.adapter_files import load_adapter, read_adapter, save_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora import LoRAConfig, adapter_tensors, inject
from rounding import alike

X = torch.randn(5, 4)


class Experts(nn.Module):
    """Two stacks of matrices, a router, and a layer inside; the stacks (experts, in, out) where `transposed`."""

    def __init__(self, n, transposed):
        super().__init__()
        self.up = nn.Parameter(torch.randn(n, 6, 4))
        self.router = nn.Parameter(torch.randn(n, 4))
        self.down = nn.Parameter(torch.randn(n, 4, 6))
        self.inside = nn.Linear(4, 4)
        self.is_transposed = transposed
        if transposed:
            self.up.data, self.down.data = self.up.data.mT.contiguous(), self.down.data.mT.contiguous()

    def forward(self, x):
        x = self.inside(x)
        up, down = (self.up, self.down) if self.is_transposed else (self.up.mT, self.down.mT)
        chosen = (x @ self.router.mT).softmax(-1).mT.unsqueeze(-1)
        return (chosen * ((x @ up).relu() @ down)).sum(0)


class Model(nn.Module):
    def __init__(self, n=3, transposed=False):
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.plain = nn.Linear(4, 4)
        self.old = Conv1D(4, 4)
        self.experts = Experts(n, transposed)

    def forward(self, x):
        return self.experts(self.plain(self.old(x)) + self.tokens(torch.arange(len(x))))


class Runs(nn.Module):
    def __init__(self, inner, run):
        super().__init__()
        self.inner, self.run = inner, run

    def forward(self, x):
        return self.run(self.inner, x)


def attend_apart(inner, x):
    return inner(x, x[:, :3], x[:, :2])[0]


def first(inner, x):
    return inner(x)[0]


STACKS = ["experts.up", "experts.down"]

MODELS = {
    "two stacks": (Model, [], STACKS),
    "transposed": (lambda: Model(transposed=True), [], STACKS),
    "one expert": (lambda: Model(1), [], ["experts.up"]),
    "the first": (Model, [], ["experts.up"]),
    "the last": (Model, [], ["experts.down"]),
    "a matrix": (Model, [], ["experts.router"]),
    "all of a module": (Model, [], ["experts.router", *STACKS]),
    "a layer inside": (Model, ["experts.inside", "plain"], STACKS),
    "lstm": (lambda: Runs(nn.LSTM(4, 3), first), [], ["inner.weight_ih_l0", "inner.weight_hh_l0"]),
    "gru cell": (lambda: Runs(nn.GRUCell(4, 3), lambda m, x: m(x)), [], ["inner.weight_ih"]),
    "attention, kdim and vdim": (
        lambda: Runs(nn.MultiheadAttention(4, 2, kdim=3, vdim=2), attend_apart),
        [],
        ["inner.q_proj_weight", "inner.k_proj_weight", "inner.v_proj_weight"],
    ),
}
"""Name -> how it is made, modules and parameters to adapt."""


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def run(model):
    with torch.no_grad():
        return model(X)


def shapes(folder):
    return {key: tuple(tensor.shape) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}


def fields(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def pefts(name, **settings):
    """Return a model of peft's with a trained adapter."""
    modules, parameters = MODELS[name][1:]
    config = LoraConfig(**{"r": 2, "target_modules": modules, "target_parameters": parameters, **settings})
    theirs = get_peft_model(made(name), config)
    fill(parameter for key, parameter in theirs.named_parameters() if "lora_" in key)
    return theirs.eval()


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


PATTERNS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"up": 3, "experts.down": 1}, "alpha_pattern": {"experts.up": 5, "weight_ih.*": 7}},
]


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("settings", PATTERNS)
@pytest.mark.parametrize("name", MODELS)
def test_ours_runs_pefts(name, settings, tmp_path):
    theirs = pefts(name, lora_alpha=3, **settings)
    theirs.save_pretrained(str(tmp_path))
    ours = made(name)
    before = run(ours)
    load_adapter(ours, tmp_path)
    assert not torch.allclose(run(ours), before)
    assert_close(run(ours), run(theirs))
    save_adapter(ours, tmp_path / "again")
    assert shapes(tmp_path / "again") == shapes(tmp_path)
    for field in ("target_modules", "target_parameters"):
        assert {*(fields(tmp_path / "again")[field] or ())} == {*fields(tmp_path)[field]}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("patterns", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_peft_runs_ours(name, patterns, scaling, tmp_path):
    ours, targets = made(name), [*MODELS[name][1], *MODELS[name][2]]
    given = {"rank_pattern": {targets[0]: 3}, "alpha_pattern": {targets[-1]: 7.0}} if patterns else {}
    inject(ours, LoRAConfig(r=2, alpha=5.0, target_modules=targets, scaling=scaling, **given))
    fill(tensor for pair in adapter_tensors(ours).values() for tensor in pair)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(made(name), str(tmp_path)).eval()
    assert_close(run(ours), run(theirs))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert shapes(tmp_path / "theirs") == shapes(tmp_path)
    again = made(name)
    load_adapter(again, tmp_path)
    assert alike(run(again), run(ours))
    for path, pair in adapter_tensors(ours).items():
        assert all(map(torch.equal, pair, adapter_tensors(again)[path]))


def test_weights_of_layers_that_peft_has_as_parameters(tmp_path):
    """`target_parameters` may name any matrix: of a Linear, of transformers' Conv1D, of an Embedding."""
    settings = {"target_modules": [], "target_parameters": ["plain.weight", "old.weight", "tokens.weight"]}
    theirs = pefts("two stacks", **settings)
    theirs.save_pretrained(str(tmp_path))
    ours = made("two stacks")
    report = load_adapter(ours, tmp_path)
    assert [target.name for target in report.adapted] == ["tokens", "plain", "old"]
    assert_close(run(ours), run(theirs))
    config = LoRAConfig.from_peft(LoraConfig(**settings))
    assert [t.name for t in inject(made("two stacks"), config).adapted] == ["tokens", "plain", "old"]


def test_the_weight_of_a_convolution_is_no_stack(tmp_path):
    model = Runs(nn.Conv1d(4, 5, 2), lambda inner, x: inner(x.mT))
    theirs = get_peft_model(model, LoraConfig(r=2, target_modules=[], target_parameters=["inner.weight"]))
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(AdapterFileError, match='"inner", a Conv1d here: its weight is no matrix'):
        load_adapter(Runs(nn.Conv1d(4, 5, 2), first), tmp_path)


def test_a_path_in_which_another_path_ends(tmp_path):
    """PEFT takes every target for an end of a path too; ours means the whole path."""

    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"experts": Experts(2, False), "more": nn.ModuleDict({"experts": Experts(2, False)})})

    ours = model()
    inject(ours, LoRAConfig(r=1, target_modules="re:experts.up"))
    save_adapter(ours, tmp_path)
    assert list(adapter_tensors(model_with(model(), tmp_path))) == ["experts.up"]
    json_of = fields(tmp_path)
    assert json_of["target_parameters"] == ["experts.up"]


def model_with(model, folder):
    load_adapter(model, folder)
    return model


def test_what_does_not_fit(tmp_path):
    pefts("two stacks").save_pretrained(str(tmp_path))
    with pytest.raises(
        AdapterFileError, match=r'lora_A of "experts.base_layer" has shape \(6, 4\); .* needs \(4 r, 4\)'
    ):
        load_adapter(Model(4), tmp_path)
    with pytest.raises(AdapterFileError, match="only load_adapter knows"):
        read_adapter(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace('"r": 2', '"r": 4'))
    with pytest.raises(AdapterFileError, match=r'lora_A of "experts(.base_layer)?" has rank 2; .* says r = 4'):
        load_adapter(made("two stacks"), tmp_path)
    (tmp_path / "adapter_config.json").write_text(text.replace('"experts.down"', '"experts.down", "plain.weight"'))
    with pytest.raises(AdapterFileError, match=re.escape('no tensors for "plain.weight", but its target_parameters')):
        load_adapter(made("two stacks"), tmp_path)


def test_dropout_is_left_out_where_peft_refuses_it(tmp_path):
    ours = made("a layer inside")
    inject(ours, LoRAConfig(r=1, dropout=0.5, target_modules=["plain", "experts.up"]))
    with pytest.warns(UserWarning, match=r"lora_dropout = 0, not 0\.5: PEFT refuses dropout"):
        save_adapter(ours, tmp_path)
    assert run(PeftModel.from_pretrained(made("a layer inside"), str(tmp_path)).eval()).shape == (5, 4)


@pytest.mark.parametrize("name", ["inside", "experts.inside"])
def test_a_module_trained_whole_inside_one_that_peft_wraps_comes_back(name, tmp_path):
    torch.manual_seed(0)
    fresh = Model().state_dict()
    model = Model()
    model.load_state_dict(fresh)
    inject(model, LoRAConfig(r=2, target_modules=["plain", "experts.up", "experts.down"], modules_to_save=name))
    fill(parameter for parameter in model.parameters() if parameter.requires_grad)
    save_adapter(model, tmp_path)
    again = Model()
    again.load_state_dict(fresh)
    load_adapter(again, tmp_path)
    assert alike(again(X), model(X))
