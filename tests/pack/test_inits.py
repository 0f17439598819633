"""Adapters of every variant and initialisation in one pack: as each alone, and as a pack is defined."""

import copy

import pytest
import torch
from torch import Tensor, nn

import reference as ref
from rankwise.errors import PackError
from rankwise.lora import LoRAConfig, inject, trainable_parameters
from rankwise.lora.adapter import adapted_layers
from rankwise.lora.base.init_data import Batches, data_of_layers
from rankwise.lora.inits import INITS
from rankwise.lora.layer.initial import initial_tensors
from rankwise.lora.maths import lora_pack
from rankwise.lora.targets.find import find_targets
from rankwise.lora.variants import FORMS
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack

EXACT = {"rtol": 0, "atol": 1e-10}
VARIANTS = ("lora", "lora-fa", "dora")
DRAWN = ("kaiming", "pissa", "olora", "orthogonal", "eva", "lora-ga")


def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5)).double()


def batch(step: int, rows: int) -> tuple[Tensor, Tensor]:
    generator = ref.keyed("rows", step)
    x = torch.randn(rows, 12, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (rows,), generator=generator)


def loss(outputs: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(outputs, rows[1], reduction="none")


def whole_loss(base: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    return loss(base(rows[0]), rows).mean()


def start_of(base: nn.Module, config: LoRAConfig) -> dict[str, Tensor]:
    """What an adapter starts with: given to packs where it follows from data."""
    data = data_of_layers(
        base,
        targets := find_targets(base, config).adapted,
        config.init,
        Batches([batch(9, 30)], lambda m, rows: m(rows[0]), whole_loss, lambda rows: None),
    )
    return {f"{t.name}.{key}": tensor for t in targets for key, tensor in initial_tensors(t, config, data).items()}


def alone(config: LoRAConfig, steps: int, rows: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same with `inject` and torch's optimiser."""
    own = model()
    inject(own, config, init_data=[batch(9, 30)[0]], init_loss=lambda m, x: whole_loss(m, batch(9, 30)))
    optimiser = torch.optim.AdamW(trainable_parameters(own), lr=0.01, weight_decay=0.1)
    for step in range(steps):
        optimiser.zero_grad()
        rows_now = batch(step, rows)
        loss(own(rows_now[0]), rows_now).mean().backward()
        optimiser.step()
    state = {
        f"{path}.{one.name}": lora.tensors("default")[one.name].detach()
        for path, (_, lora) in adapted_layers(own).items()
        for one in lora.variant_of("default").trained
    }
    return own, state


# Without DoRA layers run in batched products: factored (few rows), or with W + s B A formed (many).
@pytest.mark.parametrize(("variants", "rows"), [(VARIANTS, 4), (("lora", "lora-fa"), 4), (("lora", "lora-fa"), 60)])
def test_all_together_are_each_alone(variants, rows):
    configs = [
        LoRAConfig(r=r, init=init, variant=variant, alpha=8)
        for variant in variants
        for init in DRAWN
        for r in ((2, 6) if init in ("pissa", "orthogonal") else (4,))
    ]
    base = model()
    before = copy.deepcopy(base.state_dict())
    members = [Member(name=str(i), lora=config) for i, config in enumerate(configs)]
    states = {str(i): start_of(base, config) for i, config in enumerate(configs) if INITS[config.init].data}
    pack = Pack(base, members, loss, states=states)
    with pack.attached(batch(0, rows), training=True):
        for step in range(3):
            lr = torch.full((len(pack),), 0.01, dtype=torch.float64)
            pack.step(tuple(t.unsqueeze(0) for t in batch(step, rows)), lr, torch.full_like(lr, 0.1), None)
    trained = pack.states()
    for i, config in enumerate(configs):
        _, expected = alone(config, 3, rows)
        assert trained[str(i)].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                trained[str(i)][key], value, **EXACT, msg=f"{config.variant} {config.init} {key}"
            )
    for key, value in before.items():
        assert torch.equal(base.state_dict()[key], value)


def test_the_definition_is_the_fast_form():
    base, x = model(), batch(0, 7)[0]
    configs = [LoRAConfig(r=4, init="pissa", alpha=alpha, seed=k) for k, alpha in enumerate((4.0, 16.0))]
    pack = Pack(base, [Member(name=str(k), lora=config) for k, config in enumerate(configs)], loss)
    pack.store.randomise()
    paths = ("0", "2", "4")
    states, frozen = pack.states(), [start_of(base, config) for config in configs]
    stacks, taken = {}, {}
    for path in paths:
        stacks[path] = tuple(torch.stack([states[str(k)][f"{path}.{key}"] for k in (0, 1)]) for key in "AB")
        taken[path] = tuple(torch.stack([one[f"{path}.{key}"] for one in frozen]) for key in ("A0", "B0"))
    scales = {path: torch.tensor([1.0, 4.0], dtype=torch.float64) for path in paths}
    expected = lora_pack(base, stacks, scales, x, taken)
    with pack.attached((x, batch(0, 7)[1]), training=False):
        torch.testing.assert_close(pack.outputs((x, batch(0, 7)[1])), expected, **EXACT)


def test_counts_are_of_what_is_trained():
    base = model()
    counts = {}
    for variant in VARIANTS:
        config = LoRAConfig(r=3, init="pissa", variant=variant)
        pack = Pack(base, [Member(name="one", lora=config)], loss)
        counts[variant] = pack.members[0].parameter_count()
        assert sum(v.numel() for v in pack.states()["one"].values()) == counts[variant]
    assert counts == {"lora": 3 * (28 + 32 + 21), "lora-fa": 3 * (16 + 16 + 5), "dora": 3 * (28 + 32 + 21) + 37}


def test_what_needs_data_says_so():
    with pytest.raises(Exception, match='init "eva" starts from training data'):
        Pack(model(), [Member(name="one", lora=LoRAConfig(r=2, init="eva"))], loss)


def test_what_needs_bits_says_so():
    with pytest.raises(PackError, match="needs a weight in few bits"):
        Pack(model(), [Member(name="one", lora=LoRAConfig(r=2, init="loftq"))], loss)


def test_every_form_says_what_it_trains():
    assert [one.name for one in FORMS["dora from start"].trained] == ["A", "B", "magnitude"]
