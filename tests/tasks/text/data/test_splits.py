"""Cuts by a seed keep equal inputs together; what two splits share is counted."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Labelled, PlainText, PromptPair
from rankwise.tasks.text.data.loading import TextData, load_examples
from rankwise.tasks.text.data.splits import Overlap, cut, overlap, split_examples


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0.05, 0.95), st.integers(0, 3))
def test_a_cut_loses_nothing_and_parts_no_equal_inputs(prompts, share, seed):
    examples = [PromptPair(i, f"prompt {p}", f"answer {i}") for i, p in enumerate(prompts)]
    if len(set(prompts)) < 2:
        return
    rest, part = cut(examples, share, seed, "test")
    assert sorted(e.line for e in rest + part) == list(range(len(prompts)))
    assert rest
    assert part
    assert not {e.source for e in rest} & {e.source for e in part}


def test_a_cut_depends_on_its_seed_and_name_only():
    examples = [PlainText(i, f"text {i}") for i in range(100)]
    cuts = [
        cut(examples, 0.2, seed, what)[1] for seed, what in ((0, "test"), (0, "test"), (1, "test"), (0, "validation"))
    ]
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) == 20
    assert cuts[0] != cuts[2]
    assert cuts[0] != cuts[3]


@given(st.lists(st.integers(0, 8), min_size=2, max_size=40), st.integers(0, 3))
def test_every_label_stays_among_the_training_examples(labels, seed):
    examples = [Labelled(i, f"text {i}", f"label {label}") for i, label in enumerate(labels)]
    if len(set(labels)) == len(labels):
        with pytest.raises(DataError, match="can't be cut in two"):
            cut(examples, 0.5, seed, "test")
        return
    rest, part = cut(examples, 0.5, seed, "test")
    assert part
    assert {e.label for e in rest} == {e.label for e in examples}


def test_too_little_to_cut():
    with pytest.raises(
        DataError, match="2 examples with 1 different input can't be cut in two; give more, or a test file"
    ):
        cut([PlainText(1, "x"), PlainText(2, "x")], 0.5, 0, "test")
    with pytest.raises(DataError, match=r"The test share is 1; it must lie between 0 and 1"):
        cut([PlainText(1, "x"), PlainText(2, "y")], 1.0, 0, "test")


def test_duplicates_are_counted_whatever_case_and_spacing():
    train = [Labelled(1, "Where is my card?", "card"), Labelled(2, "Hello", "hi")]
    test = [Labelled(1, "where is  my card?", "card"), Labelled(2, "hello", "bye"), Labelled(3, "New", "hi")]
    assert overlap(train, test) == Overlap(same=1, same_input=1, n=3)
    notes = split_examples(train * 2, train, test).notes
    assert any("1 of 3 test examples are in the training data too, 1 more share their input" in note for note in notes)
    assert any("2 of 2 validation examples" in note for note in notes)


def test_no_overlap_no_note():
    assert overlap([PlainText(1, "a")], [PlainText(1, "b")]).note("test") is None


def test_files_given_or_cut(tmp_path):
    for name, n in (("train", 50), ("test", 5)):
        rows = [json.dumps({"prompt": f"{name} {i}", "completion": "x"}) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    splits, _ = load_examples(TextData(data=tmp_path / "train.jsonl", test=tmp_path / "test.jsonl"), "sft")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45, 5, 5)
    assert splits.notes == ("5 of the training examples are cut off for validation (seed 0).",)
    splits, _ = load_examples(TextData(data=tmp_path / "train.jsonl", test_share=0.2), "sft")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 4, 10)


def test_a_part_of_each_split(tmp_path):
    for name, n in (("train", 50), ("test", 5)):
        rows = [json.dumps({"prompt": f"{name} {i}", "completion": "x"}) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    where = TextData(data=tmp_path / "train.jsonl", test=tmp_path / "test.jsonl")
    whole, _ = load_examples(where, "sft")
    splits, _ = load_examples(replace(where, limit_train=12, limit_validation=3, limit_test=9), "sft")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 3, 5)
    assert set(splits.train) < set(whole.train), "the cut for validation is the same"
    assert set(splits.validation) < set(whole.validation)
    assert splits.notes[1:] == (
        "12 of 45 training examples are used, drawn with seed 0.",
        "3 of 5 validation examples are used, drawn with seed 0.",
    )


def test_banking77(data_root):
    folder = data_root / "banking77"
    columns = {"label": "category"}
    splits, _ = load_examples(
        TextData(data=folder / "train.csv", test=folder / "test.csv", columns=columns), "classify"
    )
    assert len(splits.train) + len(splits.validation) == 10_003
    assert len(splits.test) == 3_080
    assert len({e.answer for e in splits.train}) == 77


def test_e2e(data_root):
    folder = data_root / "e2e"
    columns = {"prompt": "mr", "completion": "ref"}
    where = TextData(data=folder / "devset.csv", test=folder / "testset_w_refs.csv", columns=columns)
    splits, _ = load_examples(where, "sft")
    assert len(splits.train) + len(splits.validation) == 4_672
    assert len(splits.test) == 4_693
    assert len({e.source for e in splits.test}) == 630
    assert not {e.source for e in splits.train} & {e.source for e in splits.validation}


def test_a_limit_below_the_number_of_labels_is_refused(tmp_path):
    rows = [json.dumps({"text": f"text {i}", "label": "abcdef"[i % 6]}) for i in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    where = TextData(data=tmp_path / "train.jsonl", limit_train=5)
    with pytest.raises(DataError, match=r"5 training examples are too few for 6 labels.*Raise --limit-train; 6 are"):
        load_examples(where, "classify")
    splits, _ = load_examples(replace(where, limit_train=6, limit_test=1), "classify")
    assert len({example.label for example in splits.train}) == 6
