"""Token losses through the head in parts equal those through all logits, gradients included."""

import pytest
import torch

pytest.importorskip("transformers")
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.tasks.text import vocabulary
from rankwise.tasks.text.batches import as_tensors
from rankwise.tasks.text.calls import find_inputs
from rankwise.tasks.text.losses import token_loss, token_sums
from rankwise.tasks.text.tokens import Prepared
from rankwise.tasks.text.vocabulary import TokenLoss, lean_head, row_loss
from text_models import make_model
from text_reference import random_examples


def setting(kind: str):
    model = make_model(kind).double().eval()
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    both = kind == "t5"
    batch = as_tensors(Prepared(random_examples(), 0, both), side="left" if not both else "right", shift=shift)
    call = find_inputs(model)
    return model, call, batch


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "lm_head"), ("llama", "lm_head"), ("t5", "")])
def test_the_head_is_found_where_its_outputs_are_the_logits(kind, head):
    model, call, batch = setting(kind)
    assert lean_head(model, call, batch) == head


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
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
    """Adapted or trained whole, the head is each adapter's own."""
    model, call, batch = setting("llama")
    run = TokenLoss(call, lean_head(model, call, batch))
    members = [
        Member(name="low", lora=LoRAConfig(r=2, target_modules=["q_proj", "lm_head"])),
        Member(name="whole", lora=LoRAConfig(r=2, target_modules=["q_proj"]), whole=("lm_head",)),
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
