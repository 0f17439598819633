"""Token losses the slow way: each example alone, each token by itself."""

import torch

from rankwise.tasks.text.encode.tokens import IGNORED, Tokens
from rankwise.tasks.text.score.losses import token_sums

LENGTHS = (7, 3, 12, 5, 2)


def random_examples(lengths=LENGTHS, vocabulary: int = 300) -> tuple[Tokens, ...]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i, n in enumerate(lengths):
        ids = torch.randint(3, vocabulary, (n,), generator=generator).tolist()
        given = n // 2
        rows.append(Tokens(i, ids, [IGNORED] * max(given, 1) + ids[max(given, 1) :]))
    return tuple(rows)


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each labelled token given those before it, written out."""
    total = logits.new_zeros(())
    for row, targets in zip(logits, labels, strict=True):
        for t in range(len(targets) - 1):
            if targets[t + 1] != IGNORED:
                total = total - row[t].log_softmax(-1)[targets[t + 1]]
    return total


def one_by_one(model, rows) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of the examples, each alone: the reference."""
    model.zero_grad()
    loss = sum(summed_loss(model(input_ids=torch.tensor([row.ids])).logits, torch.tensor([row.labels])) for row in rows)
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same(model, batch, rows) -> None:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    loss = summed_loss(model(**inputs, use_cache=False).logits, batch["labels"])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected, expected_gradients = one_by_one(model, rows)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-5)
    for name, a, b in zip(dict(model.named_parameters()), gradients, expected_gradients, strict=True):
        assert (a - b).norm() <= 1e-5 * max(b.norm(), 1e-2), name


def token_loss(outputs: torch.Tensor, batch) -> torch.Tensor:
    """Mean cross-entropy over the tokens with loss, as transformers' own `loss`; 0 of a batch without one."""
    sums, counts = token_sums(outputs, batch)
    return sums.sum() / counts.sum().clamp_min(1)
