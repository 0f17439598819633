"""Labelled texts as tensors."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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


def with_ends() -> Any:
    """A tokenizer that puts [CLS] before a text and [SEP] after each."""
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "[PAD]": 2, "a": 3, "b": 4}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def test_a_text_without_a_second_one_is_the_same_beside_pairs():
    tokenizer = with_ends()
    alone, pair = Labelled(1, "a b", "a"), Labelled(2, "a", "b", "b")
    both = tokenize_classify([alone, pair], LABELS, tokenizer, CONFIG, "test")
    for i, example in enumerate((alone, pair)):
        one = tokenize_classify([example], LABELS, tokenizer, CONFIG, "test")
        for key in ("input_ids", "token_type_ids"):
            assert both.data[key][i, : one.lengths[0]].tolist() == one.data[key][0].tolist()
    assert both.lengths == [4, 5]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("[CLS] a", [0, 3, 1]),
        ("a [SEP]", [0, 3, 1]),
        ("[CLS] a [SEP]", [0, 3, 1]),
        ("a [SEP] b", [0, 3, 1, 4, 1]),
        ("[CLS][CLS] a", [0, 0, 0, 3, 1]),
    ],
)
def test_the_ends_of_a_text_stand_once(text: str, ids: list[int]):
    found = tokenize_classify([Labelled(1, text, "a")], LABELS, with_ends(), CONFIG, "test")
    assert found.data["input_ids"][0].tolist() == ids
