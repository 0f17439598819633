"""Figures of what language models make of given completions."""

from collections.abc import Sequence
from typing import Any

from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.sft import tokenize_sft
from rankwise.tasks.text.encode.tokens import text_config
from rankwise.tasks.text.score.metrics import perplexity_of
from rankwise.tasks.text.score.vocabulary import TokenLoss, lean_head, row_loss
from rankwise.tasks.text.use.evaluating.result import Figures
from rankwise.tasks.text.use.outputs import outputs_of
from rankwise.tasks.text.use.served import ServedModel


def evaluate_completions(
    adapted: ServedModel, names: Sequence[str], rows: Sequence[Any], skip: bool
) -> tuple[dict[str, Figures], Sequence[str]]:
    """Loss a token and perplexity of a base and its adapters, and notes.

    Args:
        adapted: Model and adapters.
        names: Of those to evaluate.
        rows: Prompts with completions, chats or plain texts.
        skip: Whether examples that can't be used are left out.
    """
    loaded = adapted.loaded
    prepared = tokenize_sft(rows, loaded.tokenizer, loaded.config, adapted.one_way(), skip_bad_lines=skip)
    data = as_tensors(prepared, shift=loaded.shift)
    device = next(loaded.model.parameters()).device
    found: dict[str, Figures] = {}
    for name in names:
        total = count = 0.0
        with adapted.acting(name):
            head = lean_head(loaded.model, loaded.call, {key: value[:2].to(device) for key, value in data.items()})
        numbers = 1 if head is not None else text_config(loaded.config).vocab_size
        for _, outputs in outputs_of(adapted, name, data, TokenLoss(loaded.call, head), numbers):
            sums, counts = row_loss(outputs, {})
            total, count = total + float(sums.double().sum()), count + float(counts.sum())
        found[name] = {"loss": total / count, "perplexity": perplexity_of(total / count)}
    return found, prepared.notes
