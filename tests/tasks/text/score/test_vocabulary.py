"""Token losses through the head in parts equal those through all logits, gradients included."""

import pytest
import torch

pytest.importorskip("transformers")
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.tokens import Prepared
from rankwise.tasks.text.model.calls import find_inputs
from rankwise.tasks.text.score import vocabulary
from rankwise.tasks.text.score.losses import token_sums
from rankwise.tasks.text.score.vocabulary import TokenLoss, lean_head, row_loss
from text_models import make_model
from text_reference import random_examples


def setting(kind: str):
    model = make_model(kind).double().eval()
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    side = "right" if kind in ("t5", "gemma2") else "left"
    batch = as_tensors(Prepared(random_examples(), 0, kind == "t5"), side=side, shift=shift)
    call = find_inputs(model)
    return model, call, batch


KINDS = ["gpt2", "llama", "t5", "gemma2", "granite", "cohere"]
"""The last three cap their logits, divide or multiply them."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_found(kind):
    model, call, batch = setting(kind)
    head = lean_head(model, call, batch)
    assert head is not None
    assert head.name == "lm_head"
    outputs, logits = (
        torch.tensor([-2.0, 30.0]),
        {"gemma2": [-1.75, 3.0], "granite": [-1.0, 15.0], "cohere": [-0.5, 7.5]},
    )
    torch.testing.assert_close(head.finish(outputs), torch.tensor(logits.get(kind, [-2.0, 30.0])), atol=0.02, rtol=0)


def test_a_head_is_looked_at_on_few_tokens():
    model, call, batch = setting("llama")
    seen = []
    model.lm_head.forward = lambda hidden, own=model.lm_head.forward: seen.append(hidden.shape) or own(hidden)
    call(model, batch)
    del model.lm_head.forward
    wide = {key: torch.cat([value] * 9, 1) for key, value in batch.items()}
    whole = model.forward
    model.forward = lambda **given: seen.append(given["input_ids"].shape) or whole(**given)
    assert lean_head(model, call, wide) is not None
    assert seen[0][1] < wide["input_ids"].shape[1]
    assert set(seen[1:]) == {(2, vocabulary.SEEN)}


def test_where_all_logits_have_to_be_made():
    model, call, batch = setting("llama")
    model.lm_head.register_forward_hook(lambda module, args, outputs: outputs.sin())
    assert lean_head(model, call, batch) is None, "something is added to the head"
    model, call, batch = setting("llama")
    whole = model.forward
    model.forward = lambda **given: whole(**given).logits.sin()
    assert lean_head(model, call, batch) is None, "logits are made in their own way"
    model.forward = lambda **given: whole(**given).logits[:, 1:]
    assert lean_head(model, call, batch) is None, "what follows needs the head's outputs"


@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_gradients(kind, monkeypatch):
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 1000)  # several parts
    model, call, batch = setting(kind)
    model.requires_grad_(False)
    norm = next(p for n, p in model.named_parameters() if "norm" in n or "ln" in n)
    norm.requires_grad_(True)
    run = TokenLoss(call, lean_head(model, call, batch))
    sums, counts = row_loss(run(model, batch), batch)
    expected, tokens = token_sums(call(model, batch), batch)
    torch.testing.assert_close(sums, expected)
    assert torch.equal(counts, tokens)
    weights = torch.arange(1.0, len(sums) + 1).double()
    ours, theirs = (torch.autograd.grad((weights * s).sum(), norm)[0] for s in (sums, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_trained_head_is_run_as_a_layer():
    """Adapted or trained in full, the head is each adapter's own."""
    model, call, batch = setting("llama")
    run = TokenLoss(call, lean_head(model, call, batch))
    members = [
        Member(name="low", lora=LoRAConfig(r=2, target_modules=["q_proj", "lm_head"])),
        Member(name="whole", lora=LoRAConfig(r=2, target_modules=["q_proj"]), modules_to_save=("lm_head",)),
        Member(name="neither", lora=LoRAConfig(r=2, target_modules=["q_proj"])),
    ]
    for chosen in (members, members[2:]):
        packs = [
            Pack(model, chosen, row_loss, call=run),
            Pack(model, chosen, token_loss, call=call),
        ]
        stacked = {key: t.unsqueeze(0) for key, t in batch.items()}
        lr = torch.full((len(chosen),), 1e-2).double()
        for pack in packs:
            with pack.attached(batch, training=False):
                for _ in range(3):
                    pack.step(stacked, lr, None, None)
        ours, theirs = (pack.states() for pack in packs)
        for name, state in ours.items():
            for key, value in state.items():
                torch.testing.assert_close(value, theirs[name][key], rtol=1e-6, atol=1e-9)
