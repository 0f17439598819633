"""What messages hold reaches the chat template, or is refused or named; marks of turns that are not learnt are kept."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Chat
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.encode.sft import SftOptions, prompt_text, tokenize_sft
from rankwise.tasks.text.encode.tokens import IGNORED
from rankwise.tasks.text.read.sources import RawRecord, Records
from text_models import CHATML, make_tokenizer

CAUSAL = SimpleNamespace(max_position_embeddings=1024)

FULL = (
    "{% if tools %}{{ 'Tools: ' + (tools | tojson) + '<|im_end|>' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + ('/' + m.name if m.name else '') + '\n' }}"
    "{% if m.reasoning_content %}{{ '[think]' + m.reasoning_content + '[/think]' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '[call]' + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
AS_TEXT = FULL.replace("(c.function.arguments | tojson)", "c.function.arguments")

TOOLS = [{"type": "function", "function": {"name": "bus", "parameters": {"type": "object"}}}]
CALL = [{"type": "function", "id": "1", "function": {"name": "bus", "arguments": {"line": "5"}}}]
CALL_AS_TEXT = [{"type": "function", "id": "1", "function": {"name": "bus", "arguments": '{"line": "5"}'}}]


def said(role: str, content: Any = "one", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def read(*rows: dict[str, Any], task: str = "sft", skip: bool = False) -> tuple[list[Any], list[str]]:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    records = Records("a.jsonl", tuple(RawRecord(i, row) for i, row in enumerate(rows, start=1)), columns, {})
    return read_examples(records, task, skip_bad_lines=skip)


def tokenized(row: dict[str, Any], template: str = FULL, **options: Any):
    """Text, what carries loss, and notes."""
    tokenizer = make_tokenizer(template=template)
    examples, notes = read(row)
    prepared = tokenize_sft(examples, tokenizer, CAUSAL, SftOptions(**options))
    [tokens] = prepared.rows
    learnt = tokenizer.decode([label for label in tokens.labels if label != IGNORED])
    return tokenizer.decode(tokens.ids), learnt, [*notes, *prepared.notes]


@pytest.mark.parametrize("template", [FULL, AS_TEXT], ids=["objects", "text"])
@pytest.mark.parametrize("calls", [CALL, CALL_AS_TEXT], ids=["object", "JSON text"])
@pytest.mark.parametrize("content", ["", None])
def test_a_tool_call_is_what_the_template_writes(template: str, calls: Any, content: str | None) -> None:
    messages = [said("user"), said("assistant", content, tool_calls=calls), said("tool", "noon"), said("assistant")]
    text, learnt, notes = tokenized({"messages": messages, "tools": TOOLS}, template)
    # The reference is given arguments in the form that the template can write.
    form = CALL if template == FULL else CALL_AS_TEXT
    reference = [said("user"), said("assistant", "", tool_calls=form), *messages[2:]]
    tokenizer = make_tokenizer(template=template)
    assert text == tokenizer.apply_chat_template(reference, tools=TOOLS, tokenize=False)
    assert learnt == '[call]bus{"line": "5"}<|im_end|>one<|im_end|>'
    assert notes == ['The chat template writes "tool_calls" of messages, the column "tools".']


@pytest.mark.parametrize(
    ("more", "learnt"),
    [
        ({"reasoning_content": "two"}, "[think]two[/think]one<|im_end|>"),
        ({"reasoning": "two"}, "[think]two[/think]one<|im_end|>"),
        ({"tool_calls": None, "name": None}, "one<|im_end|>"),
    ],
)
def test_further_fields_reach_the_template(more: dict[str, Any], learnt: str) -> None:
    messages = [said("user", name="two"), said("assistant", **more)]
    text, carries_loss, _ = tokenized({"messages": messages})
    assert text == make_tokenizer(template=FULL).apply_chat_template(messages, tokenize=False)
    assert carries_loss == learnt


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"messages": [said("user", name="x"), said("assistant")]}, '"name" of messages (all'),
        ({"messages": [said("user"), said("assistant", reasoning_content="x")]}, '"reasoning_content" of messages'),
        ({"messages": [said("user"), said("assistant", tool_calls=CALL)]}, '"tool_calls" of messages'),
        ({"messages": [said("user"), said("assistant", id=7)]}, '"id" of messages'),
        ({"messages": [said("user"), said("assistant")], "tools": TOOLS}, 'the column "tools"'),
        ({"messages": [said("user"), said("assistant")], "tools": json.dumps(TOOLS)}, 'the column "tools"'),
    ],
)
def test_fields_that_the_template_does_not_read_are_named(row: dict[str, Any], note: str) -> None:
    assert any(f"The chat template does not write {note}" in line for line in tokenized(row, CHATML)[2])


@pytest.mark.parametrize(
    ("template", "note"),
    [
        (CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"), '"assistant" say (all'),
        (CHATML.replace("message['content']", "message['content'][:3]"), '"assistant" say (all'),
        (CHATML.replace("in messages", "in messages if message.role != 'system'"), '"system" say (all'),
        (CHATML.replace("+ message['content'] +", "+ (message['content'] | upper) +"), '"user" say (all'),
    ],
    ids=["reasoning", "cut", "no system prompt", "changed"],
)  # fmt: skip
def test_what_the_template_cuts_out_of_texts_is_said(template: str, note: str) -> None:
    messages = [said("system", "be kind"), said("user"), said("assistant", "<think>two</think>one")]
    assert any(
        f"a part of what messages of the role {note}" in line for line in tokenized({"messages": messages}, template)[2]
    )
    assert not any("does not write" in line for line in tokenized({"messages": messages}, CHATML)[2])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([said("user"), said("assistant", "", tool_calls=CALL)], r'writes nothing of answer 1 \(its "tool_calls"\)'),
        ([said("user"), said("assistant", "", reasoning="x")], r'writes nothing of answer 1 \(its "reasoning"\)'),
        ([said("user"), said("assistant"), said("user"), said("assistant", " ")], "answer 2 is empty"),
    ],
)
def test_answers_of_which_nothing_is_written_are_refused(messages: list[Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"^Line 1: .*{reason}.*--skip-bad-lines"):
        tokenized({"messages": messages}, CHATML)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss": 0}])
@pytest.mark.parametrize("loss_on", ["answer", "all"])
@pytest.mark.parametrize("marked", [False, True], ids=["found", "marked"])
def test_turns_marked_as_context_carry_no_loss(mark: dict[str, Any], loss_on: str, marked: bool) -> None:
    body = "{{ message['content'] + '<|im_end|>' }}"
    generation = "{% generation %}" + body + "{% endgeneration %}"
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}"
        + (generation if marked else body)
        + "{% else %}" + body + "{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )  # fmt: skip
    messages = [said("user"), said("assistant", "cat", **mark), said("user"), said("assistant", "two", weight=1)]
    text, learnt, _ = tokenized({"messages": messages}, template, loss_on=loss_on)
    assert "cat" in text
    assert "cat" not in learnt
    assert "two<|im_end|>" in learnt
    assert ("user" in learnt) == (loss_on == "all")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([said("user"), said("assistant", weight=0.5)], 'message 2 has "weight": 0.5; only 0 and 1 can be used'),
        ([said("user"), said("assistant", train="no")], 'message 2 has "train": "no"; only 0 and 1'),
        ([said("user", train=True), said("assistant")], '"user" has "train": true; only what an assistant says'),
        ([said("user"), said("assistant", weight=0, train=True)], r"contradict each other \(weight, train\)"),
        ([said("user"), said("assistant", tool_calls="bus")], '"tool_calls" of message 2 is no list'),
    ],
)
def test_marks_and_calls_that_can_not_be_used_are_named(messages: list[Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read({"messages": messages})


SYSTEM = said("system", "be kind")
ASKED = [said("user"), said("assistant")]
EARLIER = [said("user", "a"), said("assistant", "b")]


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"messages": ASKED, "system": "be kind"}, Chat(1, (SYSTEM, *ASKED))),
        ({"messages": [SYSTEM, *ASKED], "system": " be kind"}, Chat(1, (SYSTEM, *ASKED))),
        ({"messages": ASKED, "system": " "}, Chat(1, tuple(ASKED))),
        (
            {"messages": [said("user"), said("assistant", weight=0)], "system": "be kind"},
            Chat(1, (SYSTEM, *ASKED), (), frozenset({2})),
        ),
        ({"instruction": "one", "output": "one", "system": "be kind"}, Chat(1, (SYSTEM, *ASKED))),
        ({"instruction": "one", "output": "one", "history": [["a", "b"]]}, Chat(1, (*EARLIER, *ASKED))),
        (
            {"instruction": "one", "output": "one", "history": '[["a", "b"]]', "system": "be kind"},
            Chat(1, (SYSTEM, *EARLIER, *ASKED)),
        ),
    ],
)
def test_a_system_prompt_and_earlier_turns_beside(row: dict[str, Any], chat: Chat) -> None:
    assert read(row) == ([chat], [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [SYSTEM, *ASKED], "system": "be quick"}, "are two system prompts"),
        ({"messages": ASKED, "system": 3}, '"system" is a int, not a text'),
        ({"messages": ASKED, "tools": ["bus"]}, '"tools" is no list of objects'),
        ({"instruction": "a", "output": "b", "history": ["a", "b"]}, '"history" is no list of pairs'),
    ],
)
def test_what_stands_beside_and_can_not_be_used_is_named(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(row)


@pytest.mark.parametrize(
    ("row", "task", "note"),
    [
        ({"prompt": "a", "completion": "b", "system": "c"}, "sft", 'a.jsonl: the column "system" is not used.'),
        ({"text": "a", "id": 1, "source": "x"}, "sft", 'a.jsonl: the columns "id", "source" are not used.'),
        ({"text": "a", "label": "b", "split": "x"}, "classify", 'a.jsonl: the column "split" is not used.'),
    ],
)
def test_columns_that_nothing_reads_are_named(row: dict[str, Any], task: str, note: str) -> None:
    assert note in read(row, task=task)[1]


def test_a_prompt_to_answer_has_tools_and_earlier_turns() -> None:
    messages = [said("user"), said("assistant", tool_calls=CALL), said("tool", "noon"), said("assistant", weight=0)]
    [example], _ = read({"messages": messages, "tools": TOOLS}, task="generate")
    tokenizer = make_tokenizer(template=FULL)
    wanted = tokenizer.apply_chat_template(messages[:3], tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert prompt_text(example, tokenizer, SftOptions()) == (wanted, False)
