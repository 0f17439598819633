"""Packs that adapt stacks of experts, compared with a plain loop: W + s B A for each expert, torch's optimiser."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from zoo.transformers_models import make

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from reference import update_difference

STEPS = 8
STACKS = ["gate_up_proj", "down_proj"]

FIRST = "layers.0.mlp.experts.down_proj"

MEMBERS = {
    "stacks": ({"r": 2, "alpha": 4.0, "target_modules": STACKS}, 0, 1e-3),
    "all": ({"r": 3, "alpha": 6.0, "target_modules": ["all-linear", *STACKS]}, 0, 3e-3),
    "one stack": ({"r": 5, "alpha": 5.0, "target_modules": "down_proj", "rank_pattern": {FIRST: 1}}, 1, 2e-3),
    "router": ({"r": 2, "alpha": 8.0, "target_modules": "gate.weight"}, 0, 1e-3),
    "no stack": ({"r": 2, "alpha": 8.0, "target_modules": "q_proj"}, 0, 1e-3),
}
"""Name -> settings, seed, learning rate."""


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = make(name).double()
    model.set_experts_implementation("eager")  # the grouped products know no float64
    return model


def members() -> list[Member]:
    return [
        Member(name=name, seed=seed, lora=LoRAConfig(seed=seed, **lora)) for name, (lora, seed, _) in MEMBERS.items()
    ]


def batches(seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"ids": torch.randint(3, 60, (3, 7), generator=generator)} for _ in range(STEPS)]


def call(model: nn.Module, batch: Any) -> Tensor:
    return model(input_ids=batch["ids"]).logits


def loss(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), batch["ids"][:, 1:].flatten())


def train_plainly(model: nn.Module, name: str, start: AdapterState, transposed: bool) -> AdapterState:
    """The loop that anyone would write; the ranks are read off the tensors."""
    _, seed, lr = MEMBERS[name]
    alpha = MEMBERS[name][0]["alpha"]
    tensors = {key: value.clone().requires_grad_() for key, value in start.items()}
    base = {key: value.detach() for key, value in model.named_parameters()}
    optimiser = torch.optim.AdamW(list(tensors.values()), lr=lr, weight_decay=0.0)
    model.train()

    def delta(path: str, weight: Tensor) -> Tensor:
        A, B = tensors[f"{path}.A"], tensors[f"{path}.B"]
        if weight.ndim == 2:
            return alpha / len(A) * B @ A
        r = len(A) // len(weight)
        each = [B[:, e * r : (e + 1) * r] @ A[e * r : (e + 1) * r] for e in range(len(weight))]
        return alpha / r * torch.stack([d.T if transposed else d for d in each])

    for batch in batches(seed):
        weights = dict(base)
        for key in tensors:
            path = key.removesuffix(".A")
            if path != key:
                full = path if path in base else f"{path}.weight"
                weights[full] = base[full] + delta(path, base[full])
        value = loss(functional_call(model, weights, (batch["ids"],)).logits, batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return {key: value.detach() for key, value in tensors.items()}


@pytest.mark.filterwarnings("ignore")  # of transformers
@pytest.mark.parametrize(("name", "transposed"), [("mixtral", False), ("gpt_oss", True)])
def test_updates_are_those_of_the_plain_loop(name: str, transposed: bool) -> None:
    model = made(name)
    own = {"mixtral": ["gate.weight"], "gpt_oss": ["router.weight"]}[name]
    given = [
        replace(m, lora=replace(m.lora, target_modules=own)) if m.name == "router" and m.lora else m for m in members()
    ]
    before = copy.deepcopy(model.state_dict())
    pack = Pack(model, given, loss, call=call)
    start = pack.states()
    by_seed = {seed: batches(seed) for seed in pack.seeds}
    with pack.attached(batches(0)[0], training=True):
        for step in range(STEPS):
            rates = torch.tensor([MEMBERS[m.member.name][2] for m in pack.members], dtype=torch.float64)
            pack.step({"ids": torch.stack([by_seed[s][step]["ids"] for s in pack.seeds])}, rates, None, None)
    done = pack.states()
    assert any("run one after another, since the weight of" in note for note in pack.notes)
    for member in given:
        key = member.name
        theirs = train_plainly(copy.deepcopy(model), key, start[key], transposed)
        assert update_difference(done[key], theirs, start[key]) <= 1e-10, key
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_dropout_beside_stacks_is_said_to_act_on_the_layers_only() -> None:
    torch.manual_seed(0)
    lora = LoRAConfig(dropout=0.1, target_modules=["q_proj", *STACKS])
    pack = Pack(make("mixtral"), [Member(name="a", lora=lora)], loss, call=call)
    with pack.attached(batches(0)[0], training=True):
        pass
    note = next(note for note in pack.notes if "Dropout doesn't act on" in note)
    assert FIRST in note
    assert "q_proj" not in note
