"""Forms of examples are found by their columns; what can't be used is named by its line."""

import pytest

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Chat, Labelled, PlainText, PromptPair
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.read.sources import RawRecord, Records

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def records_of(*rows: dict) -> Records:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Records("a.jsonl", tuple(RawRecord(i, row) for i, row in enumerate(rows, start=1)), columns, {})


@pytest.mark.parametrize(
    ("row", "task", "columns", "example"),
    [
        ({"messages": HELLO, "text": "x"}, "sft", {}, Chat(1, tuple(HELLO))),
        ({"messages": '[{"role": "assistant", "content": "Hi"}]'}, "sft", {}, Chat(1, (HELLO[1],))),
        ({"prompt": "a", "completion": "b", "text": "c"}, "sft", {}, PromptPair(1, "a", "b")),
        ({"mr": "a", "ref": "b"}, "sft", {"prompt": "mr", "completion": "ref"}, PromptPair(1, "a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, "sft", {}, PromptPair(1, "a", "b", chat=True)),
        ({"instruction": "a", "input": "c", "output": "b"}, "sft", {}, PromptPair(1, "a\n\nc", "b", chat=True)),
        ({"instruction": "a", "output": "b"}, "sft", {}, PromptPair(1, "a", "b", chat=True)),
        ({"text": "a", "label": "b"}, "sft", {}, PlainText(1, "a")),
        ({"prompt": "a", "completion": "b", "body": "c"}, "sft", {"text": "body"}, PlainText(1, "c")),
        ({"text": "a", "label": " b "}, "classify", {}, Labelled(1, "a", "b")),
        ({"text": "a", "label": 3}, "classify", {}, Labelled(1, "a", "3")),
        ({"text": "a", "label": True}, "classify", {}, Labelled(1, "a", "true")),
        ({"text": "a", "label": 0.5}, "classify", {}, Labelled(1, "a", 0.5)),
        ({"text": "a", "label": ["x", "y", "x"]}, "classify", {}, Labelled(1, "a", ("x", "y"))),
        ({"text": "a", "label": []}, "classify", {}, Labelled(1, "a", ())),
        ({"q": "a", "c": "b"}, "classify", {"text": "q", "label": "c"}, Labelled(1, "a", "b")),
        ({"a": "1", "b": "2", "label": "y"}, "classify", {"text": "a", "text_pair": "b"}, Labelled(1, "1", "y", "2")),
    ],
)
def test_forms(row, task, columns, example):
    examples, notes = read_examples(records_of(row), task, columns)
    assert examples == [example]
    assert all("not used" in note for note in notes)


ASKED = Chat(1, (HELLO[0], {"role": "assistant", "content": ""}))


@pytest.mark.parametrize(
    ("row", "columns", "example"),
    [
        ({"prompt": "a"}, {}, PromptPair(1, "a", "")),
        ({"prompt": "a", "completion": "b"}, {}, PromptPair(1, "a", "")),
        ({"mr": "a", "ref": "b"}, {"prompt": "mr", "completion": "ref"}, PromptPair(1, "a", "")),
        ({"instruction": "a", "input": "c", "output": "b"}, {}, PromptPair(1, "a\n\nc", "", chat=True)),
        ({"messages": HELLO}, {}, ASKED),
        ({"messages": HELLO[:1]}, {}, ASKED),
    ],
)
def test_prompts_need_no_answers(row, columns, example):
    assert read_examples(records_of(row), "generate", columns) == ([example], [])


@pytest.mark.parametrize(
    ("label", "found"), [('["a", "b"]', ("a", "b")), (" [] ", ()), ("a", "a"), (["a"], ("a",)), ("[2, 1]", ("2", "1"))]
)
def test_several_labels_in_one_text(label, found):
    assert read_examples(records_of({"text": "x", "label": label}), "classify", several=True)[0][0].label == found
    alone = read_examples(records_of({"text": "x", "label": label}), "classify")[0][0].label
    assert alone == (label.strip() if isinstance(label, str) else found), "unasked, a text stays one label"


def test_a_list_of_labels_that_is_none_is_named():
    with pytest.raises(DataError, match=r"line 1 \(the label begins as a list and is none"):
        read_examples(records_of({"text": "x", "label": "[a, b]"}), "classify", several=True)


@pytest.mark.parametrize(
    ("row", "task", "columns", "message"),
    [
        (
            {"instruction": "a", "context": "b", "response": "c", "category": "d"},
            "sft",
            {},
            "as in --columns instruction=instruction,output=response,input=context",
        ),
        ({"question": "a"}, "sft", {}, "has the columns question; sft needs messages; or prompt, completion; or"),
        (
            {"text": "a", "category": "b", "source": "c"},
            "classify",
            {},
            "columns text, category, source; classify needs text, label",
        ),
        ({"text": "a"}, "classify", {"label": "txet"}, r'has no column "txet" for "label".*Did you mean "text"\?'),
        ({"text": "a"}, "generate", {}, "has the columns text; generate needs messages; or prompt; or instruction"),
        ({"text": "a"}, "sft", {"promt": "text"}, r'No form of example has a "promt".*Did you mean "prompt"\?'),
    ],
)
def test_columns_that_fit_no_form(row, task, columns, message):
    with pytest.raises(DataError, match=message):
        read_examples(records_of(row), task, columns)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": ""}, '"completion" is empty'),
        ({"prompt": "a", "completion": None}, 'no "completion"'),
        ({"prompt": 3, "completion": "b"}, '"prompt" is a int, not a text'),
        ({"instruction": "a", "input": 3, "output": "b"}, '"input" is a int'),
        ({"messages": []}, '"messages" is no list of messages'),
        ({"messages": "x"}, "a text that is no JSON list"),
        ({"messages": HELLO[:1]}, 'the last message is of role "user", not "assistant"'),
        ({"messages": [{"role": "bot", "content": "x"}]}, 'message 1 has the role "bot"; roles are system'),
        ({"messages": [{"role": "user"}]}, 'message 1 has the keys "role"; a message is'),
        ({"messages": ["x"]}, "message 1 is not"),
    ],
)
def test_values_that_can_not_be_used_are_named_by_line(row, reason):
    good = {"prompt": "a", "completion": "b"} | {"instruction": "a", "input": "", "output": "b"} | {"messages": HELLO}
    records = records_of({key: good[key] for key in row}, row)
    with pytest.raises(DataError, match=r"1 of 2 examples can't be used: line 2 \(.*--skip-bad-lines") as caught:
        read_examples(records, "sft")
    assert reason in str(caught.value)
    examples, notes = read_examples(records, "sft", skip_bad_lines=True)
    assert [example.line for example in examples] == [1]
    assert "line 2" in notes[0]


def test_a_file_without_one_usable_example_is_refused_even_when_bad_lines_are_skipped():
    with pytest.raises(DataError, match="1 of 1 examples can't be used: line 1"):
        read_examples(records_of({"text": " "}), "sft", skip_bad_lines=True)


def test_a_row_without_the_column_of_the_others():
    with pytest.raises(DataError, match=r'line 2 \(no "text"\)'):
        read_examples(records_of({"text": "a", "x": "b"}, {"x": "c"}), "sft")


def test_the_only_column_left_is_taken_and_said():
    records = records_of({"text": "a", "category": "b"})
    (example,), notes = read_examples(records, "classify")
    assert (example.text, example.label) == ("a", "b")
    assert notes == [f'{records.source}: the column "category" is read as "label".']
