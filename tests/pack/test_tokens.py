"""Rows of single tokens in packs: each adapter gets the updates of the real PEFT, trained alone with torch's AdamW."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.adapter_files import save_adapter
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.sweeps.attaching import put_on
from rankwise.sweeps.candidates.warm_start import read_start
from rankwise.sweeps.problem import Run
from rankwise.train.settings import Training
from reference import update_difference
from small_models import call, causal, next_tokens

STEPS, LR = 10, 1e-3
EMBEDDING = "model.embed_tokens"


def llama(tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, tie_word_embeddings=tied, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


def members():
    def adapter(r, tokens, **settings):
        return LoRAConfig(r=r, target_modules=["q_proj"], trainable_tokens=tokens, **settings)

    return [
        Member(name="one", lora=adapter(2, [17, 3])),
        Member(name="same", lora=adapter(3, [17, 3]), seed=1),
        Member(name="others", lora=adapter(2, [5, 8, 30])),
        Member(name="dora", lora=adapter(2, [17], variant="dora")),
        Member(name="none", lora=adapter(2, ())),
    ]


def peft_alone(model, member, start, batches):
    tokens = list(member.lora.trainable_tokens) or None
    config = LoraConfig(
        r=member.lora.r, lora_alpha=32, target_modules=["q_proj"], use_dora=member.lora.variant == "dora",
        trainable_token_indices=tokens,
    )  # fmt: skip
    theirs = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).double().eval()
    parameters = dict(theirs.named_parameters())
    names = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    tensors, base = {}, {}
    for key, value in start.items():
        module, _, which = key.rpartition(".")
        end = names.get(which, "lora_magnitude_vector.default.weight")
        if module == EMBEDDING:
            end = "token_adapter.trainable_tokens_delta.default"
            base[key] = model.get_input_embeddings().weight[tokens].detach()
        tensors[key] = parameters[f"base_model.model.{module}.{end}"]
        with torch.no_grad():
            tensors[key].copy_(base[key] if key in base else value.view(tensors[key].shape))
    optimiser = torch.optim.AdamW(tensors.values(), lr=LR, weight_decay=0.0)
    for batch in batches:
        optimiser.zero_grad()
        next_tokens(call(theirs, batch), batch).backward()
        optimiser.step()
    found = {key: tensor.detach() - base.get(key, 0.0) for key, tensor in tensors.items()}
    return {key: (t.T if key in base else t).reshape(start[key].shape) for key, t in found.items()}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_updates_are_those_of_peft_alone(tied):
    model = llama(tied)
    batches = {seed: [causal(1000 * seed + step) for step in range(STEPS)] for seed in (0, 1)}
    pack = Pack(model, members(), next_tokens, call=call)
    start = pack.states()
    with pack.attached(batches[0][0], training=True):
        for step in range(STEPS):
            batch = {key: torch.stack([batches[seed][step][key] for seed in pack.seeds]) for key in batches[0][0]}
            pack.step(batch, torch.full((5,), LR, dtype=torch.float64), None, None)
    # What a weight that is shared adds is found by replacing it, which can't be done for all adapters at once.
    assert [note for note in pack.notes if "one after another" in note and f'"{EMBEDDING}"' in note] == pack.notes
    assert bool(pack.notes) == tied
    for member in members():
        tensors = {key: value for key, value in start[member.name].items() if value.numel()}
        assert any(key.startswith(EMBEDDING) for key in tensors) == bool(member.lora.trainable_tokens)
        theirs = peft_alone(model, member, tensors, batches[member.seed])
        ours = {key: pack.states()[member.name][key] for key in tensors}
        assert update_difference(ours, theirs, tensors) <= 1e-10, member.name


def test_a_run_is_put_on_its_model_saved_and_gone_on_from(tmp_path):
    model = llama(False).float()
    member = members()[0]
    pack = Pack(model, [member], next_tokens, call=call)
    batch = {key: tensor.unsqueeze(0) for key, tensor in causal(0).items()}
    with pack.attached(causal(0), training=True):
        for _ in range(3):
            pack.step(batch, torch.full((1,), LR), None, None)
    state = pack.states()["one"]
    assert state[f"{EMBEDDING}.B"].any()
    run = Run(
        name="one", configuration="one", label="one", method="lora", member=member,
        training=Training(lr=LR, epochs=1, batch_size=2),
    )  # fmt: skip
    put_on(model, run, state, "saving")
    save_adapter(model, tmp_path, "saving")
    start = read_start(llama(False).float(), tmp_path)
    assert start.state.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(start.state[key], tensor, rtol=0, atol=1e-7)


def test_others_leaving_and_going_on_from_a_state_change_nothing():
    def trained(cut_at, restored_at):
        model, rows = llama(False), members()[:3]
        pack, steps = Pack(model, rows, next_tokens, call=call), 6
        for step in range(steps):
            if step == restored_at:
                states, moments = pack.states(), pack.optimiser_state()
                pack = Pack(llama(False), rows, next_tokens, call=call)
                pack.load(states, moments, step)
            if step == cut_at:
                pack.keep(torch.tensor([m.member.name != "others" for m in pack.members]))
            batch = {key: torch.stack([causal(100 * seed + step)[key] for seed in pack.seeds]) for key in causal(0)}
            with pack.attached(causal(0), training=True):
                pack.step(batch, torch.full((len(pack),), LR, dtype=torch.float64), None, torch.ones(len(pack)))
        return pack.states()

    wanted = trained(None, None)
    for found in (trained(3, None), trained(None, 3)):
        for name in ("one", "same"):
            assert wanted[name][f"{EMBEDDING}.B"].any()
            for key, tensor in wanted[name].items():
                torch.testing.assert_close(found[name][key], tensor, rtol=1e-10, atol=1e-12)
