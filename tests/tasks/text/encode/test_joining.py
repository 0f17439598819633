"""Joined examples: loss and gradients are those of each example alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from transformers import MambaConfig, MambaForCausalLM

from rankwise.errors import ConfigError
from rankwise.tasks.text.encode.joining import check_joining, fit, join
from rankwise.tasks.text.encode.tokens import IGNORED, Prepared, Tokens
from text_models import VOCABULARY, make_model
from text_reference import assert_same, one_by_one, random_examples, summed_loss


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("lengths", [(7, 3, 12, 5, 2), (1, 1, 2, 1, 6), (6, 6)])
def test_loss_and_gradients_are_those_of_the_examples_alone(kind, attention, lengths):
    rows = random_examples(lengths)
    joined = join(Prepared(rows, 2), width=16)
    assert len(joined.members) < len(rows)
    model = make_model(kind, attention)
    check_joining(model, VOCABULARY)
    assert_same(model, joined.data, rows)


def test_a_cache_would_let_examples_see_each_other():
    """Why `use_cache=False` is passed: without it transformers makes no block-diagonal mask."""
    rows = random_examples()
    joined = join(Prepared(rows, 2), width=16).data
    model = make_model("llama")
    inputs = {key: value for key, value in joined.items() if key != "labels"}
    loss = summed_loss(model(**inputs, use_cache=True).logits, joined["labels"])
    assert abs(loss - one_by_one(model, rows)[0]) > 1e-3


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_every_example_lies_whole_in_one_row(lengths):
    rows = fit(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # Best fit leaves at most one row that is not more than half full.
    assert sum(2 * sum(lengths[i] for i in row) <= 20 for row in rows) <= 1


def test_labels_tokens_and_fill():
    rows = tuple(Tokens(i, [10 + i] * n, [IGNORED, *[10 + i] * (n - 1)]) for i, n in enumerate((3, 2)))
    joined = join(Prepared(rows, pad_id=0), width=6)
    assert joined.data["input_ids"].tolist() == [[10, 10, 10, 11, 11, 0]]
    assert joined.data["labels"].tolist() == [[IGNORED, 10, 10, IGNORED, 11, IGNORED]]
    assert joined.note == "2 examples are joined into 1 rows of 6 tokens, 83% full."


def test_what_can_not_be_joined():
    with pytest.raises(ConfigError, match="Rows of 8 tokens are too short: the longest example has 12"):
        join(Prepared(random_examples(), 2), width=8)
    with pytest.raises(ConfigError, match="encoder-decoder can't be joined"):
        join(Prepared((Tokens(1, [1], [1]),), 2, encoder_decoder=True), width=8)


class Forgetful(torch.nn.Module):
    """A model whose outputs depend on all tokens before, wherever positions begin again."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 4)

    def forward(self, input_ids, position_ids=None, use_cache=None):
        return type("Output", (), {"logits": self.embedding(input_ids).cumsum(1)})()


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def mamba():
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MambaForCausalLM(config).eval()


def forgetful():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Forgetful()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [forgetful, mamba])
def test_a_model_that_mixes_joined_examples_is_refused(make, dtype):
    with pytest.raises(ConfigError, match=r"(Forgetful|Mamba\w+) does not keep joined examples apart"):
        check_joining(make().to(dtype), VOCABULARY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rounding_is_not_taken_for_mixing(kind, dtype):
    check_joining(make_model(kind).to(dtype), VOCABULARY)
