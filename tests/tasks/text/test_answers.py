"""Loss stands on the tokens that the model will be asked for: after the prompt as generation tokenises it."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Chat, PlainText, PromptPair
from rankwise.tasks.text.encode.sft import SftOptions, prompt_ids, tokenize_sft
from rankwise.tasks.text.encode.tokens import IGNORED
from text_models import CHATML, TEXT, make_tokenizer

CAUSAL = SimpleNamespace(max_position_embeddings=1024)
BOTH = SimpleNamespace(max_position_embeddings=1024, is_encoder_decoder=True)


def chat(*turns: str, first: str = "user") -> Chat:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return Chat(1, tuple({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)))


def merging_tokenizer(template: str) -> Any:
    """A BPE tokenizer without a pattern that keeps spaces and line ends apart: they merge with what follows."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    texts = ["assistant: two", "assistant: one", "\n\ntwo", "\n\none", "A:two", "A: two"] * 50
    own.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_like(prepend: str = "always") -> Any:
    """A tokenizer that writes a space before a text's beginning, as Llama 2's and Mistral's do."""
    own = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    own.decoder = decoders.Metaspace(prepend_scheme=prepend)
    own.train_from_iterator(
        [*TEXT, "Q: one A: two", "\n", "a.two"] * 20,
        trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def with_bos(template: str | None = CHATML) -> Any:
    tokenizer = make_tokenizer(template=template)
    tokenizer.bos_token = "<|im_start|>"
    own = tokenizer.backend_tokenizer
    own.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", own.token_to_id("<|im_start|>"))]
    )
    return tokenizer


def kind_of(example: Any, tokenizer: Any, config: Any = CAUSAL, **options: Any):
    prepared = tokenize_sft([example], tokenizer, config, SftOptions(**options))
    return prepared.rows[0], prepared.notes


def learnt(row: Any, tokenizer: Any) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


SPACED = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
LINES = SPACED.replace(": '", ":\n\n'")
BARE = SPACED.replace(": '", ":'")


@pytest.mark.parametrize("template", [SPACED, LINES, BARE], ids=["space", "lines", "nothing"])
@pytest.mark.parametrize("answer", ["two", " two", "\ntwo", "\n\n two"])
@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_answers_follow_their_prompts_as_generation_tokenises_them(template: str, answer: str, loss_on: str) -> None:
    tokenizer = merging_tokenizer(template)
    example = chat("one", "\n\none", "one", answer)
    row, _ = kind_of(example, tokenizer, loss_on=loss_on)
    text = tokenizer.apply_chat_template([*example.messages], tokenize=False)
    assert tokenizer.decode(row.ids) == text
    given = prompt_ids(chat("one", ""), tokenizer, SftOptions(), encoder_decoder=False)
    assert row.ids[: len(given)] == given
    if loss_on == "answer":
        assert learnt(row, tokenizer) == f"\n\none<|im_end|>{answer}<|im_end|>"


def test_a_single_answer_is_asked_for_as_it_was_taught() -> None:
    """Each of the answer's tokens is what a model is taught after the tokens that generation begins with."""
    for template in (SPACED, LINES, BARE):
        for answer in ("two", " two", "\ntwo"):
            tokenizer = merging_tokenizer(template)
            row, _ = kind_of(chat("one", answer), tokenizer)
            given = prompt_ids(chat("one", answer), tokenizer, SftOptions(), encoder_decoder=False)
            assert row.ids[: len(given)] == given
            assert row.labels[: len(given)] == [IGNORED] * len(given)
            assert tokenizer.decode(row.labels[len(given) :]) == f"{answer}<|im_end|>"


def test_marked_answers_are_cut_alike() -> None:
    marked = SPACED.replace("{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}", (
        "{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    ))  # fmt: skip
    tokenizer = merging_tokenizer(marked)
    row, _ = kind_of(chat("one", "two"), tokenizer)
    given = prompt_ids(chat("one", "two"), tokenizer, SftOptions(), encoder_decoder=False)
    assert row.ids[: len(given)] == given
    assert learnt(row, tokenizer) == "two<|im_end|>"


HEADED = "{{ 'system: one two three<|im_end|>' }}" + SPACED
QUOTED = "{% for m in messages %}{{ m['role'] + ' says one: ' + m['content'] + '<|im_end|>' }}{% endfor %}"


@pytest.mark.parametrize("template", [HEADED, QUOTED, SPACED])
@pytest.mark.parametrize("answer", ["one", "two", "A", "1", "assistant", "n"])
def test_a_first_answer_is_found_where_it_stands(template: str, answer: str) -> None:
    tokenizer = make_tokenizer(template=template)
    row, _ = kind_of(Chat(1, ({"role": "assistant", "content": answer},)), tokenizer)
    assert learnt(row, tokenizer) == f"{answer}<|im_end|>"


@pytest.mark.parametrize("prepend", ["always", "first"])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("Q: one A:", " two"), ("Q: one A: ", "two"), ("Q: one A", ": two")]
)
def test_an_answer_begins_without_the_space_of_a_beginning(prepend: str, prompt: str, completion: str) -> None:
    tokenizer = sentencepiece_like(prepend)
    row, _ = kind_of(PromptPair(1, prompt, completion), tokenizer)
    assert tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(row.ids[:-1])) == prompt + completion
    pieces = tokenizer.convert_ids_to_tokens([label for label in row.labels if label != IGNORED])
    assert "".join(pieces) == completion.replace(" ", "\u2581") + "</s>"


START = "<|im_start|>"
WRITTEN = f"{START}user\none<|im_end|>\n{START}assistant\n"


@pytest.mark.parametrize(
    ("example", "config"),
    [
        (PlainText(1, f"{WRITTEN}two<|im_end|>"), CAUSAL),
        (PlainText(1, WRITTEN), CAUSAL),
        (PromptPair(1, WRITTEN, "two"), CAUSAL),
        (PromptPair(1, WRITTEN, "two<|im_end|>"), CAUSAL),
        (PromptPair(1, WRITTEN, "two"), BOTH),
    ],
)
def test_what_the_tokenizer_puts_around_a_text_stands_there_once(example: Any, config: Any) -> None:
    tokenizer = with_bos()
    row, _ = kind_of(example, tokenizer, config)
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, "<|im_end|>"))
    assert row.ids[:2] == [start, tokenizer("user", add_special_tokens=False)["input_ids"][0]]
    if config is CAUSAL:
        assert row.ids[-1] == end
        assert row.ids[-2] != end
    if isinstance(example, PromptPair):
        given = prompt_ids(example, tokenizer, SftOptions(), encoder_decoder=config is BOTH)
        assert given[:2] == row.ids[:2]


def test_a_text_with_two_beginnings_of_its_own_keeps_them() -> None:
    row, _ = kind_of(PlainText(1, f"{START}{START}one"), make_tokenizer())
    assert row.ids[:2] == [0, 0]


@pytest.mark.parametrize(
    ("template", "loss_on", "stops"),
    [
        (SPACED, "answer", True),
        (CHATML, "answer", True),
        (CHATML, "all", True),
        (SPACED.replace("'<|im_end|>'", "'\n'"), "answer", False),
        (SPACED.replace("'<|im_end|>'", "'\n'"), "all", False),
        (
            "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>{% endfor %}",
            "answer",
            False,
        ),
    ],
)
def test_whether_an_answer_ends_is_seen_from_what_carries_loss(template: str, loss_on: str, stops: bool) -> None:
    _, notes = kind_of(
        Chat(1, ({"role": "assistant", "content": "two"},)), make_tokenizer(template=template), loss_on=loss_on
    )
    assert any("does not learn to stop" in note for note in notes) == (not stops)


FORGETS = (  # as Qwen 3: what was thought before an earlier answer is written only while that answer is the last
    "{% for m in messages %}{{ m['role'] + ': ' + (m['content'] if loop.last else m['content'].split('</think>')[-1])"
    " + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_conversations_that_a_template_refuses_are_named_together_and_can_be_left_out() -> None:
    tokenizer = make_tokenizer(template=FORGETS)
    examples = [Chat(i, chat("one", "<think>a</think>two", "one", "two").messages) for i in (1, 2)]
    examples.append(Chat(3, chat("one", "<think>a</think>two").messages))
    with pytest.raises(
        DataError, match=r"2 of 3 training examples can't be used \(lines 1, 2\)\. Line 1: .*differently"
    ):
        tokenize_sft(examples, tokenizer, CAUSAL, None, "training")
    prepared = tokenize_sft(examples, tokenizer, CAUSAL, None, "training", skip_bad_lines=True)
    assert [row.line for row in prepared.rows] == [3]
    assert prepared.notes[0].startswith(
        "2 of 3 training examples can't be used (lines 1, 2) and were left out. Line 1:"
    )
    with pytest.raises(DataError, match="2 of 2 training examples"):
        tokenize_sft(examples[:2], tokenizer, CAUSAL, None, "training", skip_bad_lines=True)
