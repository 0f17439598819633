"""Words of peft's and ours inside the names of a base's modules, and what files say of the base."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter, save_merged
from rankwise.errors import AdapterError, TargetError
from rankwise.lora import LoRAConfig, base_state_dict, inject, trainable_parameters
from rounding import alike

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks it

SMALL = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


class Net(nn.Module):
    """A body, and something of an odd name inside something."""

    def __init__(self, *path):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        inner = nn.Linear(4, 4)
        for name in reversed(path[1:]):
            holder = nn.Module()
            holder.forward = inner.forward
            holder.add_module(name, inner)
            inner = holder
        self.path = path
        self.add_module(path[0], inner)

    def forward(self, x):
        return self.get_submodule(".".join(self.path))(self.body(x))


NAMES = [
    *[(word,) for word in ("lora_head", "explora_proj", "lora_A", "lora_B", "base_layer", "original_module")],
    *[(word,) for word in ("modules_to_save", "lora_trained", "token_adapter", "lora_magnitude_vector", "_orig_mod")],
    ("lora_A", "default"),
    ("base_layer", "base_layer"),
    ("block", "original_module"),
    ("modules_to_save", "default"),
]


def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("path", NAMES, ids=".".join)
@pytest.mark.parametrize("how", ["adapted", "trained in full", "biases"])
def test_a_base_may_use_any_word(path, how, tmp_path):
    name = ".".join(path)
    settings = {
        "adapted": LoRAConfig(r=2, target_modules=["body", name]),
        "trained in full": LoRAConfig(r=2, target_modules=["body"], modules_to_save=[name]),
        "biases": LoRAConfig(r=2, target_modules=["body", name], bias="all"),
    }[how]
    base = Net(*path)
    model = copy.deepcopy(base)
    inject(model, settings)
    fill(trainable_parameters(model))
    assert base_state_dict(model).keys() == base.state_dict().keys()
    other = copy.deepcopy(base)
    load_adapter(other, save_adapter(model, tmp_path / "a"))
    assert alike(other(x()), model(x()))
    save_merged(model, tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == base.state_dict().keys()


def test_a_submodule_of_the_base_is_not_written_over():
    model = nn.ModuleDict({"head": nn.Linear(4, 4), "body": nn.Linear(4, 4)})
    model["head"].lora_trained = nn.Linear(2, 2)
    with pytest.raises(
        AdapterError, match=r'"head.weight" can\'t be trained in full: .* "lora_trained" of another making'
    ):
        inject(model, LoRAConfig(r=2, target_modules="body", modules_to_save="re:head"))


@pytest.mark.parametrize("cls", [BertForSequenceClassification, BertForTokenClassification, BertForQuestionAnswering])
@pytest.mark.parametrize("attached", [False, True])
def test_the_heads_that_peft_adds_for_a_task_are_trained_whole(cls, attached, tmp_path):
    task = {"Seq": "SEQ_CLS", "Tok": "TOKEN_CLS", "Que": "QUESTION_ANS"}[cls.__name__[7:10]]
    settings = peft.LoraConfig(task_type=task, r=2, target_modules=["query"])
    theirs = peft.get_peft_model(cls(BertConfig(**SMALL)), copy.deepcopy(settings))
    source = theirs.peft_config["default"] if attached else settings
    model = cls(BertConfig(**SMALL))
    inject(model, LoRAConfig.from_peft(source))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_peft_names_modules_by_the_ends_of_their_paths():
    config = DistilBertConfig(vocab_size=20, dim=16, hidden_dim=24, n_layers=1, n_heads=2)
    for source in ({"task_type": "SEQ_CLS"}, {"modules_to_save": ["classifier"]}):
        fields = {"r": 2, "target_modules": ["q_lin"], **source}
        theirs = peft.get_peft_model(DistilBertForSequenceClassification(config), peft.LoraConfig(**fields))
        model = DistilBertForSequenceClassification(config)
        inject(model, LoRAConfig.from_peft(fields))
        ours = {
            name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad and "lora_trained" in name
        }
        assert ours == {"pre_classifier", "classifier"}
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_peft_loads_a_file_of_a_head_whose_name_ends_others_too(tmp_path):
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=20, dim=16, hidden_dim=24, n_layers=1, n_heads=2)
    base, ids = DistilBertForSequenceClassification(config).eval(), torch.arange(6)[None]
    model = copy.deepcopy(base)
    inject(model, LoRAConfig(r=2, target_modules="q_lin", modules_to_save=["classifier"]))
    fill(trainable_parameters(model))
    save_adapter(model, tmp_path)
    again = copy.deepcopy(base)
    assert list(load_adapter(again, tmp_path).replacements) == ["classifier.bias", "classifier.weight"]
    assert alike(again(ids).logits, model(ids).logits)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits)
    inject(again, LoRAConfig(r=2, target_modules=["q_lin", "pre_classifier"], modules_to_save=["classifier"]), "both")
    with pytest.warns(UserWarning, match='takes modules_to_save "classifier" for "pre_classifier" too'):
        save_adapter(again, tmp_path, "both")


def test_an_entry_of_modules_to_save_that_no_task_explains_must_match():
    fields = {"task_type": "SEQ_CLS", "target_modules": ["query"], "modules_to_save": ["pooller", "score"]}
    with pytest.raises(TargetError, match='No module matches modules_to_save "pooller"'):
        inject(BertForSequenceClassification(BertConfig(**SMALL)), LoRAConfig.from_peft(fields))


@pytest.mark.parametrize("form", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 1)])
def test_magnitudes_load_under_both_of_their_keys(form, layer, tmp_path):
    base = nn.ModuleDict({"fc": copy.deepcopy(layer)})
    settings = peft.LoraConfig(r=2, target_modules=["fc"], use_dora=True, init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(base), settings).eval()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key.replace("lora_magnitude_vector", form): tensor for key, tensor in load_file(path).items()}, path)
    load_adapter(base, tmp_path)
    values = x() if isinstance(layer, nn.Linear) else torch.ones(1, 4, 2, 2)
    torch.testing.assert_close(base["fc"](values), theirs.base_model.model["fc"](values))


class Vision(nn.Module):
    """The paths of a vision-language model of transformers since 4.52."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        blocks = {"language_model": "layers", "visual": "blocks", "vision_tower": "layers"}
        self.model = nn.ModuleDict(
            {name: nn.ModuleDict({kind: nn.ModuleList([nn.Linear(4, 4)])}) for name, kind in blocks.items()}
        )
        self.lm_head = nn.Linear(4, 4)


OLD = {
    "model.language_model.": ("language_model.model.", "model."),
    "model.visual.": ("visual.",),
    "model.vision_tower.": ("vision_tower.",),
    "lm_head.": ("language_model.lm_head.", "lm_head."),
}


@pytest.mark.parametrize("which", [0, 1])
def test_files_of_vision_language_models_from_before_their_paths_changed(which, tmp_path):
    model = Vision()
    inject(model, LoRAConfig(r=2, target_modules="*"))
    fill(trainable_parameters(model))
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    prefix = "base_model.model."
    renamed = {}
    for key, tensor in load_file(path).items():
        new = next(new for new in OLD if key.startswith(prefix + new))
        old = OLD[new][min(which, len(OLD[new]) - 1)]
        renamed[key.replace(prefix + new, prefix + old)] = tensor
    save_file(renamed, path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**fields, "target_modules": ["0", "lm_head"]}))
    other = Vision()
    load_adapter(other, tmp_path)
    assert all(map(torch.equal, trainable_parameters(other), trainable_parameters(model)))


@pytest.mark.parametrize(
    ("make", "task", "auto"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)), "CAUSAL_LM", None),
        (lambda: BertForSequenceClassification(BertConfig(**SMALL)), "SEQ_CLS", None),
        (lambda: BertForMaskedLM(BertConfig(**SMALL)), None, "BertForMaskedLM"),
    ],
)
def test_a_file_says_what_its_base_is_so_that_peft_finds_it(make, task, auto, tmp_path):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    model = type(make()).from_pretrained(tmp_path / "base")
    whole = {"modules_to_save": ["classifier"]} if task == "SEQ_CLS" else {}
    inject(model, LoRAConfig(r=2, **whole))
    fill(trainable_parameters(model))
    save_adapter(model, tmp_path / "a")
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["task_type"]) == (str(tmp_path / "base"), task)
    assert (fields["auto_mapping"] or {}).get("base_model_class") == auto
    loader = {"CAUSAL_LM": peft.AutoPeftModelForCausalLM, "SEQ_CLS": peft.AutoPeftModelForSequenceClassification}
    theirs = loader.get(task, peft.AutoPeftModel).from_pretrained(tmp_path / "a").eval()
    ids = torch.arange(6)[None]
    torch.testing.assert_close(theirs(ids).logits, model.eval()(ids).logits)


def test_a_task_is_left_out_where_peft_would_lose_the_adapter_of_a_head(tmp_path):
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**SMALL)).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    inject(model, LoRAConfig(r=2, target_modules=["query", "classifier"]))
    fill(trainable_parameters(model))
    save_adapter(model, tmp_path / "a")
    theirs = peft.AutoPeftModel.from_pretrained(tmp_path / "a").eval()
    ids = torch.arange(6)[None]
    torch.testing.assert_close(theirs(ids).logits, model.eval()(ids).logits)


def test_a_model_of_sounds_has_no_task_whose_wrapper_hands_on_texts(tmp_path):
    """peft's model of a task calls the base with input_ids, which Whisper does not take."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "num_mel_bins": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **ids, max_source_positions=10))
    base = copy.deepcopy(model)
    inject(model, LoRAConfig(r=2, target_modules=["q_proj", "v_proj"]))
    fill(trainable_parameters(model))
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    batch = {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": torch.arange(4)[None]}
    torch.testing.assert_close(theirs(**batch).logits, model.eval()(**batch).logits)
