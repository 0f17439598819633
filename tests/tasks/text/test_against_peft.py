"""Loss and gradients of a pack equal those of transformers and peft on the same examples."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
import peft

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.joining import join
from rankwise.tasks.text.encode.tokens import Prepared
from rankwise.tasks.text.model.calls import find_inputs
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.score.vocabulary import TokenLoss, lean_head, row_loss
from text_models import CONFIGS, make_model
from text_reference import random_examples

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")

TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "v_proj", "down_proj"], "t5": ["q", "v", "wi"]}


@pytest.mark.parametrize("way", ["left", "right", "joined"])
@pytest.mark.parametrize("kind", list(TARGETS))
def test_loss_and_gradients(kind: str, way: str) -> None:
    both = kind == "t5"
    if both and way != "right":
        pytest.skip("an encoder-decoder is filled up on the right, and not joined")
    model = make_model(kind).eval()
    prepared = Prepared(random_examples(), 0, both)
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    batch = join(prepared, width=64).data if way == "joined" else as_tensors(prepared, side=way, shift=shift)
    call = find_inputs(model)

    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, alpha=16, target_modules=TARGETS[kind])) for r in (2, 5)]
    run = TokenLoss(call, lean_head(model, call, as_tensors(prepared, shift=shift)))
    pack = Pack(model, members, row_loss, call=run)
    pack.store.randomise()
    start = pack.states()
    rows = pack.rows()
    with pack.attached(batch, training=False):
        losses = pack.step({key: t.unsqueeze(0) for key, t in batch.items()}, torch.zeros(2), None, None)
    gradients = pack.store.read(pack.store.grads)
    assert torch.equal(rows, pack.rows()), "a learning rate of 0 leaves all as it was"

    # Each example by itself: no padding, nothing joined.
    for k, member in enumerate(pack.members):
        name, config = member.member.name, member.member.lora
        fresh = make_model(kind).eval()
        theirs = peft.get_peft_model(
            fresh,
            peft.LoraConfig(r=config.r, lora_alpha=16, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2"),
        ).eval()
        found = dict(theirs.named_parameters())
        own = {key: f"base_model.model.{key[:-2]}.lora_{key[-1]}.default.weight" for key in start[name]}
        with torch.no_grad():
            for key, theirs_key in own.items():
                found[theirs_key].copy_(start[name][key])
        total, tokens = torch.zeros(()), 0
        for row in prepared.rows:
            labels = torch.tensor([row.labels])
            loss = theirs(input_ids=torch.tensor([row.ids]), labels=labels).loss
            n = int((labels if both else labels[:, 1:]).ne(-100).sum())
            total, tokens = total + loss * n, tokens + n
        loss = total / tokens
        loss.backward()
        assert float(losses[k]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for key, theirs_key in own.items():
            expected = found[theirs_key].grad
            assert (gradients[name][key] - expected).norm() <= 1e-5 * expected.norm() + 1e-8, key


def test_a_classifier_with_a_head_of_its_own() -> None:
    from transformers import AutoModelForSequenceClassification

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        config = CONFIGS["bert"]()
        config.num_labels = 3
        return AutoModelForSequenceClassification.from_config(config).eval()

    model, targets = fresh(), ["query", "value", "intermediate.dense"]
    prepared = Prepared(random_examples(), 0)
    # Filled up on the right: BERT's own pooling reads the first place.
    tokens = as_tensors(prepared)
    batch = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    batch["labels"] = torch.arange(len(prepared.rows)) % 3

    members = [
        Member(name=f"r{r}", lora=LoRAConfig(r=r, alpha=16, target_modules=targets), modules_to_save=("classifier",))
        for r in (2, 5)
    ]
    pack = Pack(model, members, CLASSIFY_LOSSES["one"], call=find_inputs(model))
    pack.store.randomise()
    start = pack.states()
    with pack.attached(batch, training=False):
        losses = pack.gradients({key: t.unsqueeze(0) for key, t in batch.items()})
    gradients = pack.store.read(pack.store.grads)

    for k, member in enumerate(pack.members):
        name, config = member.member.name, member.member.lora
        settings = peft.LoraConfig(
            r=config.r, lora_alpha=16, target_modules=targets, modules_to_save=["classifier"], task_type="SEQ_CLS"
        )
        theirs = peft.get_peft_model(fresh(), settings).eval()
        found, own = dict(theirs.named_parameters()), {}
        for key in start[name]:
            module, _, what = key.rpartition(".")
            kept = f"modules_to_save.default.{what}" if what in ("weight", "bias") else f"lora_{what}.default.weight"
            own[key] = f"base_model.model.{module}.{kept}"
        with torch.no_grad():
            for key, theirs_key in own.items():
                found[theirs_key].copy_(start[name][key])
        alone = [
            theirs(input_ids=torch.tensor([row.ids]), labels=label.view(1)).loss
            for row, label in zip(prepared.rows, batch["labels"], strict=True)
        ]
        loss = torch.stack(alone).mean()
        loss.backward()
        assert float(losses[k]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for key, theirs_key in own.items():
            expected = found[theirs_key].grad
            assert (gradients[name][key] - expected).norm() <= 1e-5 * expected.norm() + 1e-8, key
