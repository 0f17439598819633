"""Losses of one adapter equal transformers' own, by row, as a scalar and under vmap."""

import pytest
import torch

pytest.importorskip("transformers")
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.tokens import IGNORED, Prepared
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES, token_sums
from text_models import make_model
from text_reference import random_examples, summed_loss

GENERATOR = torch.Generator().manual_seed(0)


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_loss_is_that_of_transformers(side):
    batch = as_tensors(Prepared(random_examples(), 2), side=side)
    theirs = make_model("gpt2")(**batch)
    torch.testing.assert_close(token_loss(theirs.logits, batch), theirs.loss)


def test_sums_and_counts_of_rows_are_those_of_the_rows():
    batch = as_tensors(Prepared(random_examples(), 2))
    outputs = logits(*batch["labels"].shape, 300)
    sums, counts = token_sums(outputs, batch)
    for i in range(len(sums)):
        torch.testing.assert_close(sums[i], summed_loss(outputs[i : i + 1], batch["labels"][i : i + 1]))
    assert counts.tolist() == (batch["labels"] != IGNORED).sum(1).tolist()
    torch.testing.assert_close(token_loss(outputs, batch), sums.sum() / counts.sum())


def test_a_batch_without_labels_is_no_division_by_zero():
    outputs = logits(2, 3, 5).requires_grad_()
    loss = token_loss(outputs, {"labels": torch.full((2, 3), IGNORED)})
    loss.backward()
    assert loss == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_half_precision_is_summed_in_float32():
    outputs = logits(2, 3, 5)
    batch = {"labels": torch.tensor([[0, 1, 2], [2, 1, 0]])}
    assert token_loss(outputs.bfloat16(), batch).dtype == torch.float32
    assert token_loss(outputs.double(), batch).dtype == torch.float64
    torch.testing.assert_close(token_loss(outputs.bfloat16(), batch), token_loss(outputs, batch), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("both", [False, True], ids=["causal", "encoder-decoder"])
def test_a_pack_takes_the_token_loss_under_vmap(both):
    """Each adapter divides by the tokens of its own batch."""
    labels = torch.tensor([[[4, IGNORED, 3, 2]], [[4, 1, IGNORED, IGNORED]]])
    batches = {"labels": labels, **({"decoder_input_ids": labels} if both else {})}
    outputs = logits(3, 1, 4, 5).requires_grad_()
    loss = PerAdapter(token_loss, "loss")
    found = loss.mean(outputs, batches, Groups([0, 1, 1], 2, outputs.device))
    assert loss.notes == []
    alone = [token_loss(outputs[k], {key: t[g] for key, t in batches.items()}) for k, g in enumerate((0, 1, 1))]
    torch.testing.assert_close(found, torch.stack(alone))


LABELS = {
    "one": torch.tensor([0, 2, 1]),
    "several": torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]),
    "number": torch.tensor([[0.5], [-1.0], [3.0]]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_classification_losses_are_those_of_transformers(kind):
    from transformers import BertForSequenceClassification

    from rankwise.tasks.text.data.labels import Labels
    from text_models import CONFIGS

    n = 1 if kind == "number" else 4
    config = CONFIGS["bert"]()
    config.num_labels, config.problem_type = n, Labels(kind, ()).problem_type
    ids = torch.randint(3, 300, (3, 5), generator=GENERATOR)
    theirs = BertForSequenceClassification(config).eval()(input_ids=ids, labels=LABELS[kind])
    rows = CLASSIFY_LOSSES[kind](theirs.logits, {"labels": LABELS[kind]})
    assert rows.shape == (3,)
    torch.testing.assert_close(rows.mean(), theirs.loss)


@pytest.mark.parametrize("kind", LABELS)
def test_a_pack_takes_classification_losses_by_row(kind):
    outputs = logits(2, 3, 1 if kind == "number" else 4)
    batch = {"labels": LABELS[kind].unsqueeze(0)}
    found, _ = PerAdapter(CLASSIFY_LOSSES[kind], "loss").rows(outputs, batch, Groups([0, 0], 1, outputs.device))
    alone = [CLASSIFY_LOSSES[kind](outputs[k], {"labels": LABELS[kind]}) for k in range(2)]
    torch.testing.assert_close(found, torch.stack(alone))
