"""Patterns to modules: every way to name them, and every way to be wrong."""

import re

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from rankwise.errors import TargetError
from rankwise.lora import LoRAConfig, find_targets
from rankwise.lora.targets.modules import Adapter, walk
from rankwise.lora.targets.patterns import matching_values, pinned


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.k_proj = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.h = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 10)


def adapted(model=None, **settings):
    return [target.name for target in find_targets(model or Model(), LoRAConfig(**settings)).adapted]


def left_out(model=None, **settings):
    return {out.name: out.reason for out in find_targets(model or Model(), LoRAConfig(**settings)).left_out}


LINEAR = [f"h.{i}.{name}" for i in (0, 1) for name in ("q_proj", "k_proj", "mlp.0", "mlp.2")] + ["head"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("all-linear", LINEAR),
        ("head", ["head"]),
        ("q_proj", ["h.0.q_proj", "h.1.q_proj"]),
        ("mlp.0", ["h.0.mlp.0", "h.1.mlp.0"]),
        ("h.1.k_proj", ["h.1.k_proj"]),
        (["q_proj", "head"], ["h.0.q_proj", "h.1.q_proj", "head"]),
        ("h.0.*", LINEAR[:4]),
        ("*_proj", [name for name in LINEAR if name.endswith("_proj")]),
        ("h.[01].mlp.2", ["h.0.mlp.2", "h.1.mlp.2"]),
        ("h.{1..7}.q_proj", ["h.1.q_proj"]),
        ("{0..0}.k_proj", ["h.0.k_proj"]),
        ("h.{1..}.*", LINEAR[4:8]),
        ("*.{0..1}.mlp.{2..}", ["h.0.mlp.2", "h.1.mlp.2"]),
        (r"re:h\.\d\.[qk]_proj", [name for name in LINEAR if name.endswith("_proj")]),
        (
            lambda name, module: isinstance(module, nn.Linear) and module.out_features == 4,
            LINEAR[0:8:4] + LINEAR[3:8:4],
        ),
        (["all-linear", "head"], LINEAR),
    ],
)
def test_ways_to_name_a_target(target, expected):
    assert sorted(adapted(target_modules=target)) == sorted(expected)


def test_a_name_is_no_part_of_a_word():
    model = nn.ModuleDict({"proj": nn.Linear(2, 2), "q_proj": nn.Linear(2, 2)})
    assert adapted(model, target_modules="proj") == ["proj"]


def test_excluded_modules_are_left_out_and_said():
    assert adapted(exclude_modules=["head", "h.0.*"]) == LINEAR[4:8]
    assert left_out(exclude_modules="head")["head"] == "excluded"


def test_left_out_says_why():
    assert left_out(target_modules="q_proj")["head"] == "no target names it"
    assert left_out()["embed"] == "by name only"
    assert "h.0.norm" not in left_out()


def test_the_model_may_be_the_layer():
    found = find_targets(nn.Linear(3, 2), LoRAConfig(r=2)).adapted[0]
    assert (found.name, found.d_in, found.d_out, found.parameters) == ("", 3, 2, 10)


def test_conv1d_is_linear():
    found = find_targets(nn.Sequential(Conv1D(6, 2)), LoRAConfig(r=1)).adapted[0]
    assert (found.d_in, found.d_out) == (2, 6)


def test_rank_and_alpha_patterns_speak_the_same_language():
    config = LoRAConfig(
        r=8,
        alpha=16.0,
        rank_pattern={"h.0.q_proj": 2, "q_proj": 4, "re:.*mlp[.]0": 1},
        alpha_pattern={"h.1.*": 3.0},
    )
    found = {target.name: (target.r, target.alpha, target.scale) for target in find_targets(Model(), config).adapted}
    assert found["h.0.q_proj"] == (2, 16.0, 8.0)
    assert found["h.1.q_proj"] == (4, 3.0, 0.75)
    assert found["h.1.mlp.0"] == (1, 3.0, 3.0)
    assert found["head"] == (8, 16.0, 2.0)


def test_ranges_of_layers_in_rank_and_exclude_patterns():
    config = LoRAConfig(r=2, rank_pattern={"h.{1..9}.q_proj": 4}, exclude_modules="*.{0..0}.mlp.*")
    found = {target.name: target.r for target in find_targets(Model(), config).adapted}
    assert (found["h.0.q_proj"], found["h.1.q_proj"]) == (2, 4)
    assert "h.0.mlp.0" not in found
    assert "h.1.mlp.0" in found


def test_a_shared_module_is_one_target_under_all_its_names():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(4, 4))})
    found = find_targets(model, LoRAConfig()).adapted
    assert [(target.name, target.aliases) for target in found] == [("a", ("b.0",)), ("b.1", ())]
    assert adapted(model, target_modules="b.0") == ["a"]


def test_the_output_head_of_a_transformers_model_is_left_out():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    assert "lm_head" not in adapted(model)
    assert left_out(model)["lm_head"] == "output head; name it to adapt it"
    assert "lm_head" in adapted(model, target_modules=["all-linear", "lm_head"])
    assert "lm_head" in adapted(model, target_modules="lm_head")


def test_a_tied_head_of_a_transformers_model_is_no_obstacle_to_all_linear():
    config = BertConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = BertForMaskedLM(config)
    assert "cls.predictions.decoder" not in adapted(model)
    found = find_targets(model, LoRAConfig(target_modules="decoder")).adapted
    assert [(t.name, [tie.name for tie in t.ties]) for t in found] == [
        ("bert.embeddings.word_embeddings", ["cls.predictions.decoder"])
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": "h.{5..1}.q_proj"}, '"h.{5..1}.q_proj" has a range that ends before it begins'),
        ({"target_modules": "h.{2..9}.q_proj"}, 'No module matches target "h.{2..9}.q_proj"'),
        (
            {"target_modules": "q_prj"},
            'No module matches target "q_prj". Those that can be adapted end in: 0, 2, embed, head, k_proj, q_proj. '
            'Did you mean "q_proj"?',
        ),
        ({"target_modules": ["q_proj", "nothing.*"]}, 'No module matches target "nothing.*"'),
        ({"target_modules": "re:q_proj"}, 'No module matches target "re:q_proj"'),
        ({"target_modules": lambda name, module: False}, "(a predicate)"),
        ({"target_modules": "re:("}, '"re:(" is no regular expression: missing )'),
        ({"target_modules": "mlp"}, '"h.0.mlp" (Sequential) can\'t be adapted'),
        ({"target_modules": "mlp"}, 'Name the layers inside it, for example "h.0.mlp.*"'),
        ({"target_modules": "norm"}, '"h.0.norm" (LayerNorm) can\'t be adapted'),
        ({"exclude_modules": "heda"}, 'No layer matches exclude_modules "heda".'),
        ({"exclude_modules": "mlp"}, 'No layer matches exclude_modules "mlp".'),
        (
            {"target_modules": "head", "rank_pattern": {"q_proj": 2}},
            'No adapted module matches rank_pattern "q_proj". Those there are end in: head.',
        ),
        ({"alpha_pattern": {"haed": 2.0}}, 'alpha_pattern "haed"'),
        ({"target_modules": "head", "exclude_modules": "head"}, "Nothing in the Model is left to adapt"),
    ],
)
def test_what_matches_nothing_is_an_error(settings, message):
    with pytest.raises(TargetError, match=re.escape(message)):
        adapted(**settings)


def test_a_model_without_layers():
    with pytest.raises(TargetError, match="it has no linear layer"):
        adapted(nn.Sequential(nn.ReLU()))


def test_walk_passes_over_adapters_and_keeps_every_name():
    layer = nn.Linear(2, 2)
    layer.add_module("lora", Adapter())
    model = nn.ModuleDict({"a": layer, "lora": nn.Sequential(layer)})
    assert [name for name, _ in walk(model)] == ["", "a", "lora", "lora.0"]


def test_pinned_gives_every_module_its_own_value():
    values = {"a": 1, "x.a": 2, "y.x.a": 1, "b": 3}
    pattern = pinned(values, 3)
    assert {**dict.fromkeys(values, 3), **matching_values(pattern, values)} == values


def test_finding_changes_nothing():
    model = Model()
    before = {name: (parameter.clone(), parameter.requires_grad) for name, parameter in model.named_parameters()}
    find_targets(model, LoRAConfig())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
