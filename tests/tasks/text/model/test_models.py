"""Models by folder: small random ones of each kind, and every mistake in one line."""

import json
import logging

import pytest
import torch

pytest.importorskip("transformers")
from transformers import (
    BartConfig,
    BertForSequenceClassification,
    BertGenerationConfig,
    BertGenerationEncoder,
    LlamaForSequenceClassification,
)

from rankwise.errors import ConfigError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import resolve
from rankwise.tasks.text.data.examples import Labelled, PromptPair
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.classify import tokenize_classify
from rankwise.tasks.text.encode.joining import join
from rankwise.tasks.text.encode.sft import tokenize_sft
from rankwise.tasks.text.model.heads import begin_at
from rankwise.tasks.text.model.models import ModelOptions, load_text_model
from rankwise.tasks.text.score.losses import class_loss
from rankwise.tasks.text.score.vocabulary import lean_head
from text_models import CONFIGS, VOCABULARY, make_model, make_tokenizer
from text_reference import mean_token_loss

THREE = Labels("one", ("a", "b", "c"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each kind of small model, with the small tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for kind in CONFIGS:
        make_model(kind).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
    return root


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_model_that_writes_is_loaded_as_it_is(folders, kind):
    loaded = load_text_model(folders / kind, "sft")
    assert loaded.encoder_decoder == (kind == "t5")
    assert (loaded.head, loaded.notes) == ((), ())
    for name, parameter in make_model(kind).named_parameters():
        assert torch.equal(parameter, loaded.model.get_parameter(name)), name
    assert not loaded.model.training


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_model_that_writes_is_run_on_prepared_examples(folders, kind):
    loaded = load_text_model(folders / kind, "sft")
    prepared = tokenize_sft(
        [PromptPair(1, "one", " two"), PromptPair(2, "The cat", " sat")], loaded.tokenizer, loaded.config
    )
    batch = as_tensors(prepared, shift=loaded.shift)
    logits = loaded.call(loaded.model, batch)
    assert logits.shape == (*batch["labels"].shape, VOCABULARY)
    inputs = {key: value for key, value in batch.items() if key not in ("position_ids", "decoder_input_ids")}
    torch.testing.assert_close(mean_token_loss(logits, batch), loaded.model(**inputs).loss)


def test_a_model_that_knows_images_too(tmp_path):
    """Vocabulary and context stand in a part of its configuration."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": VOCABULARY, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 40}
    config = Gemma3Config(
        text_config=small | text, vision_config=small | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_text_model(tmp_path, "sft")
    long = PromptPair(1, "one", " two" * 90)
    prepared = tokenize_sft([long], loaded.tokenizer, loaded.config)
    assert prepared.lengths() == [40]
    batch = as_tensors(prepared, shift=loaded.shift)
    assert loaded.call(loaded.model, batch).shape == (1, 40, VOCABULARY)
    assert lean_head(loaded.model, loaded.call, batch) is not None


def test_joined_examples_go_through_the_call(folders):
    loaded = load_text_model(folders / "llama", "sft")
    prepared = tokenize_sft(
        [PromptPair(1, "one", " two"), PromptPair(2, "The cat", " sat")], loaded.tokenizer, loaded.config
    )
    joined = join(prepared, width=32).data
    losses = [mean_token_loss(loaded.call(loaded.model, b), b) for b in (joined, as_tensors(prepared))]
    torch.testing.assert_close(*losses)


def test_a_pooled_encoder_begins_its_head_from_the_seed(folders):
    loaded = load_text_model(folders / "bert", "classify", THREE, ModelOptions(pooling="mean"))
    assert loaded.head == loaded.new_head == ("head",)
    heads = [loaded.initial_head(seed) for seed in (0, 0, 1)]
    assert torch.equal(heads[0]["head.weight"], heads[1]["head.weight"])
    assert not torch.equal(heads[0]["head.weight"], heads[2]["head.weight"])
    assert heads[2]["head.weight"].std() == pytest.approx(0.02, rel=0.2)
    assert not heads[2]["head.bias"].any()
    assert torch.equal(loaded.model.get_parameter("head.weight"), heads[0]["head.weight"])
    assert not [name for name, _ in loaded.model.named_modules() if "pooler" in name]


def test_pooling_is_the_mean_over_the_texts_tokens(folders):
    loaded = load_text_model(folders / "bert", "classify", THREE, ModelOptions(pooling="mean"))
    examples = [Labelled(1, "one two three one two", "a"), Labelled(2, "cat", "b")]
    batch = tokenize_classify(examples, THREE, loaded.tokenizer, loaded.config, "test").data
    together = loaded.call(loaded.model, batch)
    for i, example in enumerate(examples):
        ids = torch.tensor([loaded.tokenizer(example.text)["input_ids"]])
        mean = loaded.model.encoder(input_ids=ids).last_hidden_state.mean(1)
        torch.testing.assert_close(together[i], loaded.model.head(mean)[0])


def test_of_an_encoder_decoder_the_encoder_alone_is_averaged(folders, tmp_path):
    loaded = load_text_model(folders / "t5", "classify", THREE, ModelOptions(pooling="mean"))
    assert not [name for name, _ in loaded.model.named_modules() if "decoder" in name]
    batch = tokenize_classify([Labelled(1, "one two", "a")], THREE, loaded.tokenizer, loaded.config, "test").data
    with torch.no_grad():
        logits = loaded.call(loaded.model, batch)
        states = make_model("t5").get_encoder()(batch["input_ids"]).last_hidden_state
        torch.testing.assert_close(logits, loaded.model.get_submodule("head")(states.mean(1)))
    BartConfig(vocab_size=VOCABULARY).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"\(bart\) is an encoder-decoder, .* give --pooling model, or"):
        load_text_model(tmp_path, "classify", THREE, ModelOptions(pooling="mean"))


@pytest.mark.parametrize(("kind", "head"), [("bert", ("classifier",)), ("llama", ("score",)), ("gpt2", ("score",))])
def test_an_architectures_own_classifier(folders, kind, head):
    state = torch.random.get_rng_state()
    loaded = load_text_model(folders / kind, "classify", THREE)
    assert torch.equal(state, torch.random.get_rng_state())
    assert loaded.head == loaded.new_head == head
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.config.problem_type == "single_label_classification"
    again = load_text_model(folders / kind, "classify", THREE)
    assert torch.equal(loaded.model.get_parameter(f"{head[0]}.weight"), again.model.get_parameter(f"{head[0]}.weight"))
    batch = tokenize_classify(
        [Labelled(1, "one two three", "a"), Labelled(2, "cat", "b")], THREE, loaded.tokenizer, loaded.config, "test"
    ).data
    together = loaded.call(loaded.model, batch)
    alone = loaded.call(loaded.model, {"input_ids": torch.tensor([loaded.tokenizer("cat")["input_ids"]])})
    torch.testing.assert_close(together[1:], alone)


def test_a_head_that_the_checkpoint_has_is_kept_where_the_labels_fit(folders, tmp_path):
    config = CONFIGS["bert"]()
    config.num_labels = 3
    config.id2label, config.label2id = dict(enumerate(THREE.names)), {name: i for i, name in enumerate(THREE.names)}
    model = BertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    kept = load_text_model(tmp_path, "classify", THREE)
    assert (kept.head, kept.new_head) == (("classifier",), ())
    assert torch.equal(kept.initial_head(5)["classifier.weight"], model.classifier.weight)
    other = load_text_model(tmp_path, "classify", Labels("one", ("x", "y")))
    assert (other.head, other.new_head) == (("classifier",), ("classifier",))


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_pack_trains_heads_of_their_own(folders, pooling):
    loaded = load_text_model(folders / "bert", "classify", THREE, ModelOptions(pooling=pooling))
    members = [Member(name=f"s{s}", seed=s, lora=LoRAConfig(r=2, seed=s), modules_to_save=loaded.head) for s in (0, 1)]
    heads = {m.name: loaded.initial_head(m.seed) for m in members}
    states = {m.name: resolve(loaded.model, m).start(loaded.model, {}) | heads[m.name] for m in members}
    pack = Pack(loaded.model, members, class_loss, states=states, call=loaded.call)
    examples = [Labelled(1, "one two three", "a"), Labelled(2, "cat", "b")]
    data = tokenize_classify(examples, THREE, loaded.tokenizer, loaded.config, "training").data
    batch = {key: torch.stack([t, t]) for key, t in data.items()}
    before = pack.states()
    with pack.attached(data, training=True):
        losses = pack.step(batch, torch.full((2,), 1e-2), None, None)
    assert losses.isfinite().all()
    for name, state in pack.states().items():
        weight = f"{loaded.head[0]}.weight"
        assert torch.equal(before[name][weight], heads[name][weight])
        assert not torch.equal(state[weight], before[name][weight])


@pytest.mark.parametrize(
    ("kind", "pooling", "can"), [("bert", "model", True), ("bert", "mean", True), ("llama", "model", False)]
)
def test_a_head_for_numbers_begins_at_their_middle(folders, kind, pooling, can):
    loaded = load_text_model(folders / kind, "classify", Labels("number", ("value",)), ModelOptions(pooling=pooling))
    batch = {"input_ids": torch.tensor([[5, 9, 30]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad():
        before = loaded.call(loaded.model, batch)
        assert begin_at(loaded.model, loaded.new_head, 100.0) == can
        torch.testing.assert_close(loaded.call(loaded.model, batch), before + (100.0 if can else 0.0))
    assert can == (100.0 in [float(t) for t in loaded.initial_head(3).values() if t.numel() == 1])


def test_types_and_attention(folders):
    options = ModelOptions(dtype="bfloat16", attention="eager")
    loaded = load_text_model(folders / "llama", "sft", options=options)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"


def test_a_sentence_encoder_has_its_architectures_classifier_and_a_note_of_the_mean(folders, tmp_path):
    make_model("bert").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    loaded = load_text_model(tmp_path, "classify", THREE)
    assert loaded.head == ("classifier",)
    assert "--pooling mean" in loaded.notes[-1]
    for folder, pooling in ((folders / "bert", "auto"), (tmp_path, "model"), (tmp_path, "mean")):
        notes = load_text_model(folder, "classify", THREE, ModelOptions(pooling=pooling)).notes
        assert not [note for note in notes if "--pooling" in note]


def test_transformers_is_quiet_and_set_back(folders, caplog):
    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    with caplog.at_level(logging.WARNING):
        load_text_model(folders / "bert", "classify", THREE)
    assert caplog.records == []
    assert theirs.get_verbosity() == level


def folder_with(path, **config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_no_such_model(tmp_path):
    with pytest.raises(
        ConfigError, match=r'There is no folder "nobody/nothing", and none is kept on this machine'
    ) as caught:
        load_text_model("nobody/nothing", "sft")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r'There is no folder ".*nowhere"'):
        load_text_model(tmp_path / "nowhere", "sft")
    with pytest.raises(ConfigError, match=r"There is no file .*a\.gguf"):
        load_text_model(tmp_path / "a.gguf", "sft")
    with pytest.raises(ConfigError, match=r"has no config\.json; a model's folder holds"):
        load_text_model(tmp_path, "sft")


def test_not_a_causal_model(folders):
    with pytest.raises(ConfigError, match=r"\(bert\) is not a causal model nor an encoder-decoder.*the task classify"):
        load_text_model(folders / "bert", "sft")


def test_code_of_its_own_is_not_run_unasked(tmp_path):
    folder = folder_with(tmp_path / "m", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (folder / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ConfigError, match=r"needs Python code that comes with it.*--trust-remote-code") as caught:
        load_text_model(folder, "sft")
    assert "\n" not in str(caught.value)


def test_unknown_or_damaged(tmp_path, folders):
    with pytest.raises(ConfigError, match=r"The configuration of .* can't be loaded"):
        load_text_model(folder_with(tmp_path / "unknown", model_type="unheard-of"), "sft")
    for field, value in {"max_position_embeddings": None, "hidden_size": "32", "rope_parameters": 3}.items():
        with pytest.raises(ConfigError, match=r"The configuration of .* can't be loaded: .*") as caught:
            load_text_model(folder_with(tmp_path / "odd", model_type="llama", **{field: value}), "sft")
        assert "\n" not in str(caught.value)
    make_model("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r'The tokenizer of ".*bare" can\'t be loaded'):
        load_text_model(tmp_path / "bare", "sft")
    make_model("llama").save_pretrained(tmp_path / "cut")
    make_tokenizer().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r'The model of ".*cut" can\'t be loaded') as caught:
        load_text_model(tmp_path / "cut", "sft")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model(tmp_path):
    LlamaForSequenceClassification(CONFIGS["llama"]()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no weights for \d+ parameters of a LlamaForCausalLM"):
        load_text_model(tmp_path, "sft")
    with pytest.raises(ConfigError, match=r"has no weights for .* modules of the base"):
        load_text_model(tmp_path, "classify", THREE)
    with pytest.raises(ConfigError, match=r"has no weights for .* modules of the base"):
        load_text_model(tmp_path, "classify", THREE, ModelOptions(pooling="mean"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, '--dtype is "bf16"; it is one of float32, bfloat16, float16'),
        ({"pooling": "cls"}, '--pooling is "cls"; it is one of auto, mean, model'),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ConfigError, match=message):
        ModelOptions(**options)


def test_tasks_and_labels_are_needed(folders):
    with pytest.raises(ConfigError, match=r'Task "clasify" is not known.*Did you mean "classify"'):
        load_text_model(folders / "bert", "clasify")
    with pytest.raises(ConfigError, match="A classifier needs its labels"):
        load_text_model(folders / "bert", "classify")


def test_an_architecture_without_a_classifier_is_pooled(tmp_path):
    config = BertGenerationConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    BertGenerationEncoder(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_text_model(tmp_path, "classify", THREE).head == ("head",)
    with pytest.raises(ConfigError, match=r"has no classifier of its own; give --pooling mean"):
        load_text_model(tmp_path, "classify", THREE, ModelOptions(pooling="model"))
