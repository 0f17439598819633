"""AdamW's step is torch's for each adapter, whether the kernel runs on a buffer or once for each rate."""

import pytest
import torch
from torch import Tensor, nn

from pack.test_any_model import batches_of, cases_of, made, together
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.optimisers import AdamW
from rankwise.pack.pack import Pack
from rankwise.pack.step import adamw
from reference import update_difference
from small_models import KINDS, call


@pytest.fixture(params=["on a buffer", "for each rate"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "for each rate":
        monkeypatch.setattr(adamw, "MANY", 1)
        monkeypatch.setattr(adamw, "LONG", 1)
    return request.param


@pytest.mark.usefixtures("way")
def test_each_tensor_moves_as_with_torch() -> None:
    """Rates, their multiples, decays, betas and eps all differ; a tensor has no gradient in some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    members = [
        Member(name="full", modules_to_save=("0", "1"), head_lr_multiplier=30.0, head_lr_multiplier_for=("1",)),
        Member(name="lora", lora=LoRAConfig(r=2), lr_ratio=4.0),
        Member(name="other", lora=LoRAConfig(r=3), optimiser=AdamW(betas=(0.8, 0.95), eps=1e-6)),
    ]
    pack = Pack(model, members, lambda outputs, batch: outputs.square().mean(1))
    times = {"full": {"1.weight": 30.0, "1.bias": 30.0}, "lora": {"0.B": 4.0, "1.B": 4.0}, "other": {}}
    leaves = {
        name: {key: value.clone().requires_grad_() for key, value in state.items()}
        for name, state in pack.states().items()
    }
    order = list(leaves)
    rates, decays = torch.tensor([1e-2, 2e-2, 1e-2]).double(), torch.tensor([0.1, 0.0, 0.1]).double()
    optimisers = {
        m.name: torch.optim.AdamW(
            [{"params": [leaf], "lr": times[m.name].get(key, 1.0)} for key, leaf in leaves[m.name].items()],
            betas=m.optimiser.betas if isinstance(m.optimiser, AdamW) else (0.9, 0.999),
            eps=m.optimiser.eps if isinstance(m.optimiser, AdamW) else 1e-8,
        )
        for m in members
    }
    multiples = {name: [group["lr"] for group in one.param_groups] for name, one in optimisers.items()}
    draws = torch.Generator().manual_seed(1)
    for step in range(5):
        now = rates * (1 - step / 10)
        given: dict[str, dict[str, Tensor]] = {}
        for k, name in enumerate(order):
            grads = {key: torch.randn(v.shape, generator=draws).double() for key, v in leaves[name].items()}
            for group, times_lr in zip(optimisers[name].param_groups, multiples[name], strict=True):
                group["lr"], group["weight_decay"] = float(now[k]) * times_lr, float(decays[k])
            for key, leaf in leaves[name].items():
                leaf.grad = None if unused(step, name, key) else grads[key]
            optimisers[name].step()
            given[name] = grads
        gradient(pack, given, step)
        pack.update(now, decays, None)
    for name, state in pack.states().items():
        for key, value in state.items():
            torch.testing.assert_close(value, leaves[name][key].detach(), rtol=0, atol=1e-12)


def unused(step: int, name: str, key: str) -> bool:
    return step in (0, 3) and (name, key) in (("full", "1.bias"), ("lora", "0.B"))


def gradient(pack: Pack, given: dict[str, dict[str, Tensor]], step: int) -> None:
    """Write gradients as a backward pass does."""
    pack.store.begin()
    for i, bucket in enumerate(pack.store.buckets):
        for key in bucket.shapes:
            target = pack.store.gradient(i, key)
            for k, one in enumerate(bucket.members):
                if not unused(step, one.member.name, key):
                    value = torch.zeros_like(target.stack[k])
                    place = bucket.unpadded(key, k, value)
                    scale = one.targets[0].scale if key in bucket.ups else 1.0
                    place[...] = (given[one.member.name][key] / scale).reshape(place.shape)
                    target.copy_one(k, value)
    pack.store.finish()


@pytest.mark.parametrize("name", ["cnn", "bert"])
def test_both_ways_train_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    model, cases, batches = made(kind), cases_of(kind), batches_of(kind, 6)
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    ended = {2: ["part"], 4: ["other"]}
    buffered = together(model, kind, cases, batches, ended)
    monkeypatch.setattr(adamw, "MANY", 1)
    monkeypatch.setattr(adamw, "LONG", 1)
    by_rate = together(model, kind, cases, batches, ended)
    for key in buffered:
        assert update_difference(by_rate[key], buffered[key], start[key]) <= 1e-10
