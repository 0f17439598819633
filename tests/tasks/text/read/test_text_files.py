"""Texts in files: no row is swallowed, cut or changed without a word, and what can't be read can be left out."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Chat, Labelled, PlainText, PromptPair
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.data.prompts import read_prompts
from rankwise.tasks.text.encode.classify import tokenize_classify
from rankwise.tasks.text.encode.sft import tokenize_sft
from rankwise.tasks.text.encode.templates import read_template
from rankwise.tasks.text.read.bad_lines import BadLineError, usable
from rankwise.tasks.text.read.sources import RawRecord, Records, read_records
from rankwise.tasks.text.use.generating import Writing, with_room
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.served import BASE_NAME, load_adapted
from text_models import make_model, make_tokenizer


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def texts_of(path: Path, **how: Any) -> list[Any]:
    return [list(row.values.values()) for row in read_records(path, **how).rows]


UNQUOTED = {
    "over tabs and lines": '"Hello there\tone\nfine\ttwo\nHe said bye"\tthree\nfour\tYes\n',
    "to the end of the file": '"Hello\tone\nfine\ttwo\n',
    "closed within": '"Good" film\tone\nfine\ttwo\n',
    "in the second column": 'one\t"Hello\ntwo\tbye"\nthree\tx\n',
    "two that open": '"a\tone\n"b\ttwo\nc"\tthree\n',
    "beside a damaged line": '"a\tone\nb\ttwo\nc\nd"\tthree\ne\tfour\n',
}


@pytest.mark.parametrize("body", UNQUOTED.values(), ids=UNQUOTED.keys())
def test_a_quotation_mark_of_a_text_swallows_no_rows_of_a_tsv(tmp_path: Path, body: str) -> None:
    path = write(tmp_path / "a.tsv", "prompt\tcompletion\n" + body)
    lines = [line.split("\t") for line in body.splitlines()]
    assert texts_of(path, skip_bad_lines=True) == [fields for fields in lines if len(fields) == 2]
    assert f"{path}: quotation marks are read as a part of the texts." in read_records(path, skip_bad_lines=True).notes


QUOTED = {
    "lines": ('"one\ntwo"\tx\nthree\ty\n', [["one\ntwo", "x"], ["three", "y"]], "1 row runs over several lines"),
    "tabs": ('"one\ttwo"\tx\n', [["one\ttwo", "x"]], None),
    "marks": ('"say ""hi"""\tx\n', [['say "hi"', "x"]], None),
    "all": ('"one"\t"x"\n"two"\t"y"\n', [["one", "x"], ["two", "y"]], None),
}


@pytest.mark.parametrize(("body", "rows", "note"), QUOTED.values(), ids=QUOTED.keys())
def test_a_tsv_with_quoting_is_read_with_it(tmp_path: Path, body: str, rows: list[list[str]], note: str | None) -> None:
    path = write(tmp_path / "a.tsv", "prompt\tcompletion\n" + body)
    assert texts_of(path) == rows
    notes = read_records(path).notes
    assert len(notes) == (0 if note is None else 1)
    assert all(note in said for said in notes if note)


def test_texts_over_several_lines_of_a_csv_file_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\na,b\n"one\ntwo",x\n"three\r\nfour",y\n')
    assert len(texts_of(path)) == 3
    [note] = read_records(path).notes
    assert "2 rows run over several lines, as quotation marks say (the first begins in line 3)" in note


@pytest.mark.parametrize("half", ["\\ud83d", "\\udc4d", "x\\ud83d y"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_surrogates_are_named_and_can_be_left_out(tmp_path: Path, half: str, name: str) -> None:
    rows = ['{"text": "good"}', f'{{"text": "{half}"}}', f'{{"text": "x", "more": {{"of": ["{half}"]}}}}']
    path = write(tmp_path / name, "\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]")
    with pytest.raises(DataError, match=r"2 of 3 lines .*line 2 \(half of a surrogate pair \(\\ud[c8]") as caught:
        read_records(path)
    str(caught.value).encode()
    assert [row.values for row in read_records(path, skip_bad_lines=True).rows] == [{"text": "good"}]


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert texts_of(write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\udc4d"}')) == [["\U0001f44d"]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.csv.gz", "prompts.txt"])
def test_other_encodings_are_called_what_they_are(tmp_path: Path, encoding: str, name: str) -> None:
    content = '{"text": "one"}\n' if "json" in name else "text\none\n"
    data = content.encode(encoding)
    path = write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(DataError, match=r"is UTF-(16|32).*; save it as UTF-8\.$"):
        read_prompts(path) if name.endswith("txt") else read_records(path, skip_bad_lines=True)


def test_marks_of_a_beginning_are_no_text(tmp_path: Path) -> None:
    both = '\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n'
    assert texts_of(write(tmp_path / "a.jsonl", both)) == [["a"], ["b"]]
    prompts, _ = read_prompts(write(tmp_path / "a.txt", "\ufeffone\ntwo\n"))
    assert [prompt.source for prompt in prompts] == ["one", "two"]
    assert read_template(write(tmp_path / "a.jinja", "\ufeff{{ 1 }}")) == "{{ 1 }}"


@pytest.mark.parametrize("cut", ["\u2028", "\u2029", "\x0c", "\x0b", "\x85", "\x1c"])
def test_only_line_ends_end_lines(tmp_path: Path, cut: str) -> None:
    prompts, _ = read_prompts(write(tmp_path / "a.txt", f"one{cut}two\r\nthree\rfour\n"))
    assert [prompt.source for prompt in prompts] == [f"one{cut}two", "three", "four"]
    row = json.dumps({"text": f"one{cut}two"}, ensure_ascii=False)
    if cut in ("\u2028", "\u2029", "\x85"):  # JSON has the others escaped only
        assert texts_of(write(tmp_path / "a.jsonl", f"{row}\n{row}\n")) == [[f"one{cut}two"]] * 2
    assert texts_of(write(tmp_path / "a.csv", f"text,label\none{cut}two,x\n")) == [[f"one{cut}two", "x"]]


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{", "null", b"\xff"],
    ids=["nested", "a long number", "cut off", "null", "no UTF-8"],
)
def test_a_line_that_is_no_json_is_named_and_can_be_left_out(tmp_path: Path, line: str | bytes) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + data + b"\n")
    with pytest.raises(DataError, match=r"1 of 2 lines can't be read: line 2 \("):
        read_records(path)
    assert texts_of(path, skip_bad_lines=True) == [["a"]]


def test_a_compressed_file_that_is_damaged_inside(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b'{"text": "a"}\n' * 500))
    data[30:60] = b"\xff" * 30
    with pytest.raises(DataError, match="can't be read"):
        read_records(write(tmp_path / "a.jsonl.gz", bytes(data)))


@pytest.mark.parametrize(
    ("columns", "task", "suggested"),
    [
        (("id", "question", "answer"), "sft", "prompt=question,completion=answer"),
        (("Question", "Response", "source"), "sft", "prompt=Question,completion=Response"),
        (("idx", "sentence", "category"), "classify", "text=sentence,label=category"),
        (("a", "b", "c"), "sft", "prompt=COLUMN,completion=COLUMN"),
        (("a", "b", "c"), "classify", "text=COLUMN,label=COLUMN"),
        (("id", "conversations", "x"), "sft", "messages=conversations"),
    ],
)
def test_suggested_columns_are_there_and_mean_it(columns: tuple[str, ...], task: str, suggested: str) -> None:
    records = Records("a.jsonl", (RawRecord(1, dict.fromkeys(columns, "x")),), columns, {})
    with pytest.raises(DataError, match=rf"Name the columns, as in --columns {suggested}\.$"):
        read_examples(records, task)


CAUSAL = SimpleNamespace(max_position_embeddings=256, vocab_size=320)
BOTH = SimpleNamespace(max_position_embeddings=256, vocab_size=320, is_encoder_decoder=True, eos_token_id=1)


def wide() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(320 - len(tokenizer))])
    tokenizer.add_tokens(["zebra"])
    return tokenizer


@pytest.mark.parametrize(
    ("bad", "config", "reason"),
    [
        (PromptPair(2, "zebra", "x"), CAUSAL, 'Line 2 has the token "zebra" of number 320'),
        (PromptPair(2, "x", "zebra"), BOTH, 'Line 2 has the token "zebra" of number 320'),
        (PlainText(2, "x"), BOTH, "Line 2 is a plain text; an encoder-decoder needs"),
        (Chat(2, ({"role": "assistant", "content": " "},)), CAUSAL, "Line 2: answer 1 is empty"),
    ],
)
def test_examples_that_can_not_be_used_can_be_left_out(bad: Any, config: Any, reason: str) -> None:
    examples = [PromptPair(1, "one", " two"), bad, PromptPair(3, "one", " two")]
    with pytest.raises(DataError, match=f"^{reason}.*--skip-bad-lines leaves such lines out"):
        tokenize_sft(examples, wide(), config)
    prepared = tokenize_sft(examples, wide(), config, None, "test", skip_bad_lines=True)
    assert [row.line for row in prepared.rows] == [1, 3]
    assert prepared.notes[0].startswith(f"1 of 3 test examples can't be used (line 2) and were left out. {reason}")


@pytest.mark.parametrize(
    ("bad", "labels", "config", "reason"),
    [
        (Labelled(2, "one", "c"), Labels("one", ("a", "b")), CAUSAL, 'labels that the training data does not: "c"'),
        (Labelled(2, "one", ("a", "b")), Labels("one", ("a", "b")), CAUSAL, "Line 2 has 2 labels"),
        (Labelled(2, "one", "high"), Labels("number", ("value",)), CAUSAL, 'Line 2 has the label "high"'),
        (Labelled(2, "zebra", "1"), Labels("number", ("value",)), CAUSAL, 'Line 2 has the token "zebra"'),
        (Labelled(2, "o<|im_end|>ne", "a"), Labels("one", ("a", "b")), BOTH, 'Line 2 holds "<\\|im_end\\|>"'),
    ],
)
def test_labelled_texts_that_can_not_be_used_can_be_left_out(
    bad: Any, labels: Labels, config: Any, reason: str
) -> None:
    good = "1" if labels.kind == "number" else "a"
    examples = [Labelled(1, "one", good), bad, Labelled(3, "two", good)]
    with pytest.raises(DataError, match=reason):
        tokenize_classify(examples, labels, wide(), config, "test")
    found = tokenize_classify(examples, labels, wide(), config, "test", skip_bad_lines=True)
    assert len(found.data["labels"]) == len(found.data["input_ids"]) == 2
    assert "1 of 3 test examples can't be used (line 2) and were left out" in found.notes[0]


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def test_prompts_that_a_template_refuses_can_be_left_out(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer(template=ALTERNATING).save_pretrained(tmp_path)
    adapted = load_adapted((), UseOptions(model=str(tmp_path)))
    user, answer = {"role": "user", "content": "one"}, {"role": "assistant", "content": ""}
    prompts = [Chat(1, (user, answer)), Chat(2, (user, user, answer)), Chat(3, (user, answer))]
    with pytest.raises(DataError, match=r"Line 2: the chat template refuses the conversation: no\. --skip-bad-lines"):
        with_room(adapted, [BASE_NAME], prompts, Writing())
    places, notes = with_room(adapted, [BASE_NAME], prompts, Writing(), skip_bad_lines=True)
    assert places == [0, 2]
    assert "1 of 3 prompts can't be used (line 2) and were left out" in notes[0]


def test_all_bad_lines_are_counted_and_the_first_are_named() -> None:
    def refuse(row: RawRecord) -> None:
        raise BadLineError(row.line, ": no")

    with pytest.raises(
        DataError, match=r"9 of 9 rows can't be used \(lines 1, 2, 3, 4, 5 and 4 more\)\. Line 1: no\.$"
    ):
        usable([RawRecord(i, {}) for i in range(1, 10)], refuse, "rows", skip=True)
