"""Batches: either padding side and any trimming give the loss and gradients of each example alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")
from rankwise.errors import ConfigError
from rankwise.tasks.text.encode.batches import as_tensors, bucketed_order, fill_up, trim
from rankwise.tasks.text.encode.tokens import IGNORED, Prepared, Tokens
from rankwise.train.data.tensors import take
from text_models import make_model
from text_reference import assert_same, random_examples


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind, side, attention):
    rows = random_examples()
    assert_same(make_model(kind, attention), as_tensors(Prepared(rows, 2), side=side), rows)


@pytest.mark.parametrize("side", ["left", "right"])
def test_trimmed_batches_are_as_wide_as_their_longest(side):
    data = as_tensors(Prepared(random_examples(), 2), side=side)
    batch = trim(take(data, torch.tensor([[0, 1], [3, 4]])))
    assert {tuple(t.shape) for t in batch.values()} == {(2, 2, 7)}
    rows = random_examples()
    assert (batch["input_ids"] * batch["attention_mask"]).sum(-1).tolist() == [
        [sum(rows[0].ids), sum(rows[1].ids)],
        [sum(rows[3].ids), sum(rows[4].ids)],
    ]
    assert (batch["labels"] != IGNORED).sum() == sum(label != IGNORED for i in (0, 1, 3, 4) for label in rows[i].labels)


def test_encoder_decoders_read_the_labels_moved_by_one():
    model = make_model("t5")
    prepared = Prepared((Tokens(1, [5, 6, 7], [8, 1]), Tokens(2, [9], [10, 11, 1])), 2, encoder_decoder=True)
    batch = as_tensors(prepared, shift=model.prepare_decoder_input_ids_from_labels)
    assert batch["decoder_input_ids"].tolist() == [[2, 8, 1], [2, 10, 11]]
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    ours = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    loss = F.cross_entropy(ours.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(loss, theirs.loss)
    alone = trim({key: value[:1] for key, value in batch.items()})
    assert {key: t.shape[1] for key, t in alone.items()} == {
        "input_ids": 3, "attention_mask": 3, "decoder_input_ids": 2, "labels": 2,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="prepare_decoder_input_ids_from_labels"):
        as_tensors(prepared)


def test_a_classifier_keeps_its_labels():
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [7, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    for labels in (torch.tensor([0, 1]), torch.ones(2, 3)):
        assert trim({**inputs, "labels": labels})["labels"] is labels


def test_an_unknown_side():
    with pytest.raises(ConfigError, match='padding side is "top"; it is "right" or "left"'):
        fill_up([[1]], 0, side="top")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_an_order_by_length_holds_every_example_once(lengths, batch_size, seed, epoch):
    assert sorted(bucketed_order(lengths, batch_size, seed, epoch).tolist()) == list(range(len(lengths)))


def test_batches_are_of_alike_length_and_shuffled():
    lengths = torch.randint(1, 100, (640,), generator=torch.Generator().manual_seed(0)).tolist()
    orders = [bucketed_order(lengths, 16, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(orders[0], orders[3])
    assert not torch.equal(orders[0], orders[1])
    widths = [torch.tensor(lengths)[order].view(-1, 16).amax(1) for order in orders]
    # A fifth of the columns of batches at random is filling; here next to nothing.
    assert sum(lengths) / (widths[0].sum() * 16) > 0.9
    assert widths[0].tolist() != sorted(widths[0].tolist())
    # Batches of two seeds that meet in one step are of alike width.
    assert (widths[0] - widths[2]).abs().float().mean() < 4
