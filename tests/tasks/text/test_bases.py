"""Bases with their own settings: of generation, of templates, of configurations in one another, of positions."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

pytest.importorskip("transformers")
from composed_options import compose
from transformers import (
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3TextConfig,
    Phi3Config,
    Phi3ForCausalLM,
    SiglipVisionConfig,
)

from rankwise.cli import main
from rankwise.errors import ConfigError
from rankwise.tasks.text.data.examples import Chat, PromptPair
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.sft import SftOptions, prompt_text, tokenize_sft
from rankwise.tasks.text.encode.templates import template_text, writes_date
from rankwise.tasks.text.encode.tokens import find_answer_context, find_context, reading_config
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.model.models import ModelOptions, load_text_model
from rankwise.tasks.text.options import SweepOptions
from rankwise.tasks.text.prompting import Prompting, read_prompting
from rankwise.tasks.text.use.generating import as_prompt, write_texts
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.served import BASE_NAME, load_adapted
from text_models import CHATML, VOCABULARY, make_model, make_tokenizer

CAUSAL = SimpleNamespace(max_position_embeddings=256)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "llama"
    make_model("llama", layers=1).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def likeliest(model: Any, tokenizer: Any, prompt: str, n: int) -> str:
    """Greedy answers by the definition."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(n):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_strings": ["<|im_end|>", "STOP"]},
        {"return_dict_in_generate": True, "output_scores": True},
        {"suppress_tokens": list(range(40, 250))},
        {"begin_suppress_tokens": list(range(250))},
        {"bad_words_ids": [[n] for n in range(40, 250)]},
        {"num_beams": 3, "num_return_sequences": 3, "do_sample": True},
        {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_length": 90},
        {"guidance_scale": 3.0},
        {"max_length": 5, "max_time": 1e-9},
        {"exponential_decay_length_penalty": [1, 9.0]},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_bases_own_settings_of_generation_change_no_answer(
    llama: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for path in llama.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    own = json.loads((llama / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(own | settings))
    adapted = load_adapted((), UseOptions(model=str(folder)))
    model: Any = adapted.loaded.model
    before = model.generation_config
    prompts = ["The cat", "one two three one"]
    texts = write_texts(adapted, BASE_NAME, [as_prompt(p) for p in prompts], Writing(max_new_tokens=6))
    assert texts == [likeliest(model, adapted.loaded.tokenizer, p, 6) for p in prompts]
    assert model.generation_config is before
    said = any("put aside" in note for note in adapted.notes)
    assert said == (
        next(iter(settings)) not in ("return_dict_in_generate", "prompt_lookup_num_tokens", "cache_implementation")
    )


def test_a_stop_string_that_is_a_token_ends_answers(llama: Path) -> None:
    adapted = load_adapted((), UseOptions(model=str(llama)))
    model, tokenizer = adapted.loaded.model, adapted.loaded.tokenizer
    prompts = ["The cat", "one", "two three", "Hello", "assistant", "a", "b", "c", "d", "e"]
    first = {prompt: tokenizer(likeliest(model, tokenizer, prompt, 1))["input_ids"] for prompt in prompts}
    # The answer's first token is a whole character, so it can be written as a string.
    prompt = next(prompt for prompt, ids in first.items() if len(ids) == 1)
    config: Any = model.generation_config
    config.stop_strings = tokenizer.convert_ids_to_tokens(first[prompt])
    [text] = write_texts(adapted, BASE_NAME, [as_prompt(prompt)], Writing(max_new_tokens=6))
    assert text == tokenizer.decode(first[prompt])


def test_draws_are_of_the_whole_vocabulary(llama: Path) -> None:
    """Of nearly equal probabilities, 320 tokens wide, no fifty are all that is drawn."""
    adapted = load_adapted((), UseOptions(model=str(llama)))
    seen: set[int] = set()
    for seed in range(3):
        [text] = write_texts(
            adapted, BASE_NAME, [as_prompt("one")], Writing(max_new_tokens=100, temperature=50.0, seed=seed)
        )
        seen.update(text.encode())
    assert len(seen) > 60


NAMED = {"default": CHATML, "tool_use": "TOOLS" + CHATML}


def test_of_several_templates_the_default_one_writes_and_tool_use_where_there_are_tools() -> None:
    tokenizer: Any = make_tokenizer()
    tokenizer.chat_template = NAMED
    messages = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})
    tools = ({"type": "function", "function": {"name": "bus", "parameters": {}}},)
    for chat in (Chat(1, messages), Chat(1, messages, tools)):
        [row] = tokenize_sft([chat], tokenizer, CAUSAL).rows
        wanted = tokenizer.apply_chat_template([*messages], tools=[*chat.tools] or None, tokenize=False)
        assert tokenizer.decode(row.ids) == wanted
    assert template_text(tokenizer) == CHATML
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(ConfigError, match='has the chat templates tool_use, and none called "default"; give one with'):
        tokenize_sft([Chat(1, messages)], tokenizer, CAUSAL)


DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
WAYS = {
    "single quotes": DATED,
    "double quotes": DATED.replace("'%d %b %Y'", '"%d %b %Y"'),
    "asked first": "{% if strftime_now is defined %}{{ 'Today: ' + strftime_now('%d %b %Y') }}{% endif %}" + CHATML,
    "set": "{% set day = strftime_now( \"%d %b %Y\" ) %}{{ 'Today: ' + day + '\n' }}" + CHATML,
    "filtered": "{{ 'Today: ' + (strftime_now('%d %b %Y') | trim) + '\n' }}" + CHATML,
    "by a variable": "{% set day = '%d %b %Y' %}{{ 'Today: ' + strftime_now(day) + '\n' }}" + CHATML,
    "in a macro": "{% macro day() %}{{ strftime_now ('%d %b %Y') }}{% endmacro %}{{ 'Today: ' + day() }}" + CHATML,
}  # fmt: skip


@pytest.mark.parametrize("template", WAYS.values(), ids=WAYS.keys())
def test_a_template_writes_the_date_of_the_run(template: str) -> None:
    tokenizer = make_tokenizer(template=template)
    chat = Chat(1, ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}))
    options = SftOptions(date="2026-07-04")
    [row] = tokenize_sft([chat], tokenizer, CAUSAL, options).rows
    assert "Today: 04 Jul 2026" in tokenizer.decode(row.ids)
    assert "Today: 04 Jul 2026" in prompt_text(chat, tokenizer, options)[0]
    assert writes_date(tokenizer)


def test_a_date_that_is_none() -> None:
    with pytest.raises(ConfigError, match='--date is "tomorrow"; it is a date such as 2026-11-29'):
        SftOptions(date="tomorrow")


def test_the_date_is_kept_by_the_run_and_beside_the_adapter(llama: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"one {i}"}, {"role": "assistant", "content": "two"}]}
        for i in range(30)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(llama), "--task", "sft", "--data", str(tmp_path / "a.jsonl"), "--epochs", "1", "--quiet"]
    more = ["--chat-template", DATED, "--date", "2020-02-29", "--out", str(tmp_path / "out")]
    assert main(["train", *flags, *more]) == 0
    assert "date: '2020-02-29'" in (tmp_path / "out" / "config.yaml").read_text()
    [folder] = (tmp_path / "out" / "adapters").iterdir()
    kept = read_prompting(folder)
    assert kept is not None
    assert kept.date == "2020-02-29"
    assert load_adapted([folder], UseOptions()).ways[0].date == "2020-02-29"
    assert load_adapted([folder], UseOptions(date="2021-01-01")).ways[0].date == "2021-01-01"
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    Prompting(chat=True, chat_template=DATED, date="2019-01-01").save(other)
    both = load_adapted([folder, other], UseOptions())
    assert both.one_way().date == "2020-02-29"
    assert any("taught on different dates; the chat template writes 2020-02-29" in note for note in both.notes)


def test_todays_date_is_in_the_settings_of_a_run_on_texts_to_imitate() -> None:
    given: dict[str, Any] = {"model": "m", "data": "d"}
    assert "date" in compose(SweepOptions, task="sft", **given).settings()
    assert "date" not in compose(SweepOptions, task="classify", **given).settings()


def gemma3(pad: int | None) -> Gemma3Config:
    text = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        pad_token_id=pad, eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    seen = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=4, image_token_index=3,
                        boi_token_index=4, eoi_token_index=5)  # fmt: skip


@pytest.mark.parametrize("pad", [None, 7, 2])
def test_a_classifier_finds_the_end_of_a_text_by_the_pad_token_of_the_configuration_inside(
    tmp_path: Path, pad: int | None
) -> None:
    config = gemma3(pad)
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_text_model(tmp_path, "classify", Labels("one", ("0", "1")), ModelOptions(pooling="model"))
    rows = [[9, 8, 7, 6], [9, 8]]
    batch = {
        "input_ids": torch.tensor([[*row, *[2] * (4 - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (4 - len(row)) for row in rows]),
    }
    with torch.no_grad():
        together = loaded.call(loaded.model, batch)
        for row, logits in zip(rows, together, strict=True):
            alone = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
            torch.testing.assert_close(loaded.call(loaded.model, alone)[0], logits, atol=1e-5, rtol=1e-4)


def test_a_mean_over_a_model_whose_size_stands_in_the_configuration_inside(tmp_path: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_config(gemma3(2)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load_text_model(tmp_path, "classify", Labels("one", ("a", "b")), ModelOptions(pooling="mean"))
    model: Any = loaded.model
    assert model.head.in_features == 24


def phi3() -> Phi3Config:
    factors = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return Phi3Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=48, max_position_embeddings=64, original_max_position_embeddings=16, rope_scaling=factors,
        pad_token_id=2, eos_token_id=1, bos_token_id=0,
    )  # fmt: skip


def test_examples_stay_within_the_context_up_to_which_rows_do_not_mix() -> None:
    """Phi-3's longest row decides for all rows beyond its first context, which transformers shows here."""
    model = Phi3ForCausalLM(phi3()).eval()
    ids = torch.arange(5, 21).unsqueeze(0)
    short = {"input_ids": ids, "position_ids": torch.arange(16).unsqueeze(0)}

    def beside(n: int) -> torch.Tensor:
        longer = torch.arange(n).remainder(200).add(5)
        both = torch.full((2, n), 2)
        both[0, :16], both[1] = ids[0], longer
        mask = torch.ones(2, n, dtype=torch.long)
        mask[0, 16:] = 0
        with torch.no_grad():
            return model(input_ids=both, attention_mask=mask).logits[0, :16]

    with torch.no_grad():
        alone = model(**short).logits[0]
    torch.testing.assert_close(beside(16), alone)
    assert not torch.allclose(beside(40), alone, atol=1e-3)
    tokenizer = make_tokenizer()
    assert find_context(model.config, tokenizer) == 16
    with pytest.raises(ConfigError, match=r"--max-length is 40; this model takes 2 to 16 tokens \(beyond that"):
        find_context(model.config, tokenizer, 40)
    layered = SimpleNamespace(
        max_position_embeddings=64,
        rope_parameters={
            "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 8},
            "sliding_attention": {"rope_type": "default"},
        },
    )
    assert find_context(layered, tokenizer) == 8


def test_contexts_under_other_names() -> None:
    tokenizer: Any = SimpleNamespace(model_max_length=10**30)
    led = transformers.LEDConfig(max_encoder_position_embeddings=64, max_decoder_position_embeddings=16)
    assert (find_context(led, tokenizer), find_answer_context(led, 64)) == (64, 16)
    assert find_context(transformers.MptConfig(max_seq_len=32), tokenizer) == 32
    part = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    encoder = transformers.BertConfig(max_position_embeddings=24, **part)
    decoder = transformers.BertConfig(max_position_embeddings=12, is_decoder=True, add_cross_attention=True, **part)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    assert find_context(reading_config(both), tokenizer) == 24
    assert find_answer_context(both, 24) == 12
    t5 = transformers.T5Config()
    assert find_answer_context(t5, find_context(t5, tokenizer)) == 512


def test_answers_are_cut_where_the_decoder_ends() -> None:
    led = transformers.LEDConfig(
        vocab_size=VOCABULARY, max_encoder_position_embeddings=64, max_decoder_position_embeddings=8, eos_token_id=1
    )
    prompt = PromptPair(1, "one two three " * 4, "cat sat on the mat " * 4)
    made = tokenize_sft([prompt], make_tokenizer(), led)
    assert (len(made.rows[0].ids) <= 64, len(made.rows[0].labels)) == (True, 8)
    assert "longer than 64 tokens (of an answer 8)" in made.notes[-1]
