"""Tokens of examples to imitate: what carries loss, what is cut, and what the model is given."""

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.data.examples import Chat, PlainText, PromptPair, SftExample
from rankwise.tasks.text.encode.rendering import show_plain
from rankwise.tasks.text.encode.sft import SftOptions, prompt_text, tokenize_sft
from rankwise.tasks.text.encode.tokens import IGNORED
from text_models import CHATML, make_tokenizer

CAUSAL = SimpleNamespace(max_position_embeddings=256)
BOTH = SimpleNamespace(max_position_embeddings=256, is_encoder_decoder=True)


def chat(*turns: str, line: int = 1) -> Chat:
    return Chat(line, tuple({"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)))


def learnt(row, tokenizer) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def tokenized(example, config=CAUSAL, tokenizer=None, **options):
    tokenizer = tokenizer or make_tokenizer()
    prepared = tokenize_sft([example], tokenizer, config, SftOptions(**options))
    return prepared, prepared.rows[0], tokenizer


HELLO = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nyou<|im_end|>\n"

CASES = [
    (PromptPair(1, "Hello!", " How are you?"), {}, "Hello! How are you?<|im_end|>", " How are you?<|im_end|>"),
    (PromptPair(1, "Hello!", "you"), {"separator": "\n"}, "Hello!\nyou<|im_end|>", "you<|im_end|>"),
    (PromptPair(1, "Hello", "you"), {"chat": True}, HELLO, "you<|im_end|>"),
    (PromptPair(1, "Hello", "you", chat=True), {}, HELLO, "you<|im_end|>"),
    (PromptPair(1, "Hello", "you", chat=True), {"chat": False}, "Hello\n\nyou<|im_end|>", "you<|im_end|>"),
    (chat("one", "two", "three", "one"), {}, None, "two<|im_end|>one<|im_end|>"),
    (chat("é", "日本語 é"), {}, None, "日本語 é<|im_end|>"),
]  # fmt: skip


@pytest.mark.parametrize(("example", "options", "text", "answer"), CASES)
def test_loss_is_on_answers_and_what_ends_them(example, options, text, answer):
    _, row, tokenizer = tokenized(example, **options)
    assert learnt(row, tokenizer) == answer
    assert text is None or tokenizer.decode(row.ids) == text
    assert all(label in (IGNORED, token) for token, label in zip(row.ids, row.labels, strict=True))


@pytest.mark.parametrize(("example", "options"), [case[:2] for case in CASES])
def test_what_comes_before_the_last_answer_is_what_generation_is_given(example, options):
    _, row, tokenizer = tokenized(example, **options)
    text, special = prompt_text(example, tokenizer, SftOptions(**options))
    given = tokenizer(text, add_special_tokens=special)["input_ids"]
    assert row.ids[: len(given)] == given
    assert row.labels[len(given)] != IGNORED


@pytest.mark.parametrize("example", [case[0] for case in CASES])
def test_loss_on_everything_but_the_first_token(example):
    _, row, _ = tokenized(example, loss_on="all")
    assert row.labels == [IGNORED, *row.ids[1:]]


def test_plain_text_is_learnt_whole_and_ended():
    _, row, tokenizer = tokenized(PlainText(1, "The cat sat on the mat"))
    assert tokenizer.decode(row.ids) == "The cat sat on the mat<|im_end|>"
    assert row.labels == [IGNORED, *row.ids[1:]]


MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}A:{% generation %}{{ message['content'] }}"
    "<|im_end|>{% endgeneration %}{% else %}U:{{ message['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def test_a_template_that_marks_answers_itself_is_taken_at_its_word():
    _, row, tokenizer = tokenized(chat("one", "two", "three", "one"), tokenizer=make_tokenizer(template=MARKED))
    assert learnt(row, tokenizer) == "two<|im_end|>one<|im_end|>"


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text(CHATML)
    for given in (path, str(path), CHATML):
        _, row, tokenizer = tokenized(chat("one", "two"), tokenizer=make_tokenizer(template=None), chat_template=given)
        assert learnt(row, tokenizer) == "two<|im_end|>"


ONLY_LAST = "{% for m in messages %}{{ m['content'] if loop.last else 'gone ' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        (None, ConfigError, r'The tokenizer of "small" has no chat template.*--chat-template FILE'),
        ("{% for", ConfigError, "The chat template is no Jinja"),
        ("{{ raise_exception('Roles must alternate') }}", DataError, "Line 7: .*refuses.*Roles must alternate"),
        (ONLY_LAST, DataError, "Line 7: the chat template writes the messages before answer 1 differently"),
    ],
)
def test_templates_that_can_not_be_used(template, error, message):
    with pytest.raises(error, match=message):
        tokenized(chat("one", "two", "three", "one", line=7), tokenizer=make_tokenizer(template=template))


def test_options_that_can_not_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r'--loss-on is "answers".*Did you mean "answer"'):
        SftOptions(loss_on="answers")
    with pytest.raises(ConfigError, match=r"nowhere\.jinja can't be read"):
        tokenized(chat("one", "two"), chat_template=tmp_path / "nowhere.jinja")
    with pytest.raises(ConfigError, match="--max-length is 1,000; this model takes 2 to 256 tokens"):
        tokenized(PlainText(1, "x y"), max_length=1000)


def test_truncation_is_counted_and_said():
    examples = [PromptPair(1, "one", " two"), PromptPair(2, "one", " two" * 9), PromptPair(3, "one two" * 9, " three")]
    tokenizer = make_tokenizer()
    prepared = tokenize_sft(examples, tokenizer, CAUSAL, SftOptions(max_length=6))
    assert [row.line for row in prepared.rows] == [1, 2]
    assert max(map(len, (row.ids for row in prepared.rows))) == 6
    longest = max(len(tokenizer(e.source + e.answer)["input_ids"]) + 1 for e in examples)
    assert f"2 of 3 examples are longer than 6 tokens (the longest has {longest})" in prepared.notes[0]
    assert "1 of 3 examples have no token with loss and were left out: line 3" in prepared.notes[1]


def test_the_context_of_the_model_is_the_limit():
    prepared, row, _ = tokenized(PlainText(1, "cat " * 900))
    assert len(row.ids) == 256
    assert "longer than 256 tokens" in prepared.notes[0]


def test_nothing_left():
    with pytest.raises(
        DataError, match="None of the 1 examples has a token with loss within 4 tokens; raise --max-length"
    ):
        tokenized(PromptPair(1, "one two three one two three", "x"), max_length=4)


def test_a_tokenizer_without_padding_is_given_a_token_and_it_is_said():
    prepared, _, tokenizer = tokenized(PlainText(1, "one two"), tokenizer=make_tokenizer(pad=False))
    assert prepared.pad_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert any('no token for padding; rows are filled up with "<|im_end|>"' in note for note in prepared.notes)


def test_words_that_touch_are_said():
    prepared, _, _ = tokenized(PromptPair(1, "Hello", "you"))
    assert "All completions follow the prompt without a space" in prepared.notes[0]
    assert tokenized(PromptPair(1, "Hello", " you"))[0].notes == ()


def test_answers_that_do_not_end_are_said():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    prepared, _, _ = tokenized(chat("one", "two"), tokenizer=make_tokenizer(template=template))
    assert "does not learn to stop" in prepared.notes[0]


def test_encoder_decoder():
    prepared, row, tokenizer = tokenized(PromptPair(1, "one two", "three"), BOTH)
    assert prepared.encoder_decoder
    assert tokenizer.decode(row.ids) == "one two"
    assert tokenizer.decode(row.labels) == "three"
    with pytest.raises(DataError, match="Line 3 is a plain text; an encoder-decoder needs"):
        tokenized(PlainText(3, "x"), BOTH)


def test_an_example_is_shown_with_what_carries_loss():
    _, row, tokenizer = tokenized(chat("one", "two", "three", "one"))
    plain = show_plain(row, tokenizer)
    assert "<|im_start|>assistant\n«two<|im_end|>»\n" in plain
    assert plain.endswith("«one<|im_end|>»\n")
    assert plain.startswith("Example of line 1: loss on ")
    assert "".join(part.split("»")[0] for part in plain.split("«")[2:]) == learnt(row, tokenizer)
    _, row, tokenizer = tokenized(PromptPair(1, "one two", "three"), BOTH)
    assert show_plain(row, tokenizer, encoder_decoder=True).endswith("one two«three»")


SPOKEN = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
OPENED = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif")
OUTSIDE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "loss_on", "note"),
    [
        (
            OPENED,
            "all",
            'asks for an answer with "<think>", which it does not write before answers (all conversations).',
        ),
        (OUTSIDE, "answer", 'writes "<think>" before an answer without marking it as one, and does not ask for'),
    ],
)
def test_answers_that_are_asked_for_otherwise_than_written(template: str, loss_on: str, note: str) -> None:
    tokenizer = make_tokenizer(template=template)
    found = tokenize_sft([Chat(1, tuple(SPOKEN))], tokenizer, CAUSAL, SftOptions(loss_on=loss_on))
    assert any(note in said for said in found.notes)
    plain = tokenize_sft([Chat(1, tuple(SPOKEN))], make_tokenizer(), CAUSAL)
    assert not any("asks for" in said or "without marking" in said for said in plain.notes)


@pytest.mark.parametrize(
    ("example", "options", "note"),
    [
        (Chat(1, tuple(SPOKEN)), SftOptions(separator=" "), "--separator has no effect"),
        (Chat(1, tuple(SPOKEN)), SftOptions(chat=False), "--no-chat has no effect on messages"),
        (PromptPair(1, "one ", "two"), SftOptions(chat_template=CHATML), "--chat-template has no effect"),
        (PlainText(1, "one two"), SftOptions(chat=True), "--chat has no effect"),
    ],
)
def test_settings_that_no_example_uses(example: SftExample, options: SftOptions, note: str) -> None:
    assert any(note in said for said in tokenize_sft([example], make_tokenizer(), CAUSAL, options).notes)


def test_a_template_that_takes_all_memory_is_refused() -> None:
    with pytest.raises(DataError, match=r"the chat template fails on the conversation:.*MemoryError"):
        tokenize_sft([Chat(1, tuple(SPOKEN))], make_tokenizer(template="{{ 'a' * 10**17 }}"), CAUSAL)


@pytest.mark.parametrize(
    ("example", "inside"),
    [
        (PromptPair(1, "Hello!", " you<|im_end|> two"), True),
        (PromptPair(1, "Hello!", " you<|im_end|>\n"), False),
        (PromptPair(1, "Hello<|im_end|>!", " you"), False),
        (chat("one", "two<|im_end|>three"), True),
        (chat("one", "two", "three", "one"), False),
        (PlainText(1, "one<|im_end|>two"), False),
    ],
)
@pytest.mark.parametrize("config", [CAUSAL, BOTH])
def test_an_end_within_an_answer_is_said(example, inside, config):
    if isinstance(example, PlainText) and config is BOTH:
        pytest.skip("an encoder-decoder takes no plain texts")
    prepared, _, _ = tokenized(example, config)
    assert any("hold the end token" in note for note in prepared.notes) == inside
