"""Labelled texts as tensors."""

from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels, find_labels
from rankwise.tasks.text.data.loading import TextData, load_examples
from rankwise.tasks.text.encode.classify import tokenize_classify
from text_models import make_tokenizer

BOTH = SimpleNamespace(max_position_embeddings=32, is_encoder_decoder=True, eos_token_id=1)
CONFIG = SimpleNamespace(max_position_embeddings=32)
LABELS = Labels("one", ("a", "b"))


def test_texts_are_filled_up_and_counted():
    tokenizer = make_tokenizer()
    found = tokenize_classify(
        [Labelled(1, "one two", "b"), Labelled(2, "three", "a")], LABELS, tokenizer, CONFIG, "test"
    )
    assert found.data["labels"].tolist() == [1, 0]
    assert found.data["attention_mask"].sum(1).tolist() == found.lengths
    for row, mask, text in zip(
        found.data["input_ids"], found.data["attention_mask"], ["one two", "three"], strict=True
    ):
        assert tokenizer.decode(row[mask.bool()]) == text
    assert found.notes == ()


def test_long_texts_are_cut_and_said():
    examples = [Labelled(1, "cat " * 99, "b"), Labelled(2, "three", "a")]
    found = tokenize_classify(examples, LABELS, make_tokenizer(), CONFIG, "training")
    assert found.data["input_ids"].shape == (2, 32)
    assert "1 of 2 training texts are longer than 32 tokens (the longest has 1" in found.notes[0]
    with pytest.raises(ConfigError, match="--max-length is 64; this model takes 2 to 32"):
        tokenize_classify(examples, LABELS, make_tokenizer(), CONFIG, "training", max_length=64)


def test_two_texts():
    tokenizer = make_tokenizer()
    found = tokenize_classify([Labelled(1, "one", "a", "two")], LABELS, tokenizer, CONFIG, "test")
    assert tokenizer.decode(found.data["input_ids"][0]) == "onetwo"


def test_no_token_for_padding_is_said():
    found = tokenize_classify([Labelled(1, "one", "a")], LABELS, make_tokenizer(pad=False), CONFIG, "test")
    assert "no token for padding" in found.notes[0]


def test_a_label_only_in_test():
    with pytest.raises(DataError, match="The test data has labels that the training data does not"):
        tokenize_classify([Labelled(1, "one", "c")], LABELS, make_tokenizer(), CONFIG, "test")


def test_banking77(data_root):
    folder = data_root / "banking77"
    where = TextData(data=folder / "train.csv", test=folder / "test.csv", columns={"label": "category"})
    splits, _ = load_examples(where, "classify")
    labels = find_labels(splits.train)
    assert len(labels.names) == 77
    assert labels.names[0] == "Refund_not_showing_up"
    found = tokenize_classify(splits.test, labels, make_tokenizer(), SimpleNamespace(n_positions=1024), "test")
    assert found.data["labels"].shape == (3080,)
    assert found.data["labels"].bincount().tolist() == [40] * 77


def test_a_text_for_an_encoder_decoder_ends_with_its_eos():
    """Its classifier reads the outputs there; this tokenizer adds none of itself."""
    examples = [Labelled(1, "one two", "a"), Labelled(2, "cat", "b"), Labelled(3, "one " * 60, "a")]
    found = tokenize_classify(examples, LABELS, make_tokenizer(), BOTH, "test")
    assert [row[n - 1] for row, n in zip(found.data["input_ids"].tolist(), found.lengths, strict=True)] == [1, 1, 1]
    assert max(found.lengths) == 32
    with pytest.raises(DataError, match=r'Line 2 holds "<\|im_end\|>", by which the model finds the end of a text'):
        tokenize_classify(
            [Labelled(1, "cat", "a"), Labelled(2, "a<|im_end|>b<|im_end|>", "b")],
            LABELS,
            make_tokenizer(),
            BOTH,
            "test",
        )
