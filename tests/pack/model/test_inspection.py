"""What a pack finds out about a model before the first step, and what it does where something ties rows together."""

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.model.inspection import Inspections, inspect_model
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from reference import update_difference

Changed = Callable[[nn.Module, Tensor], Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Model(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between: Changed, *, also_in_eval: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self._between, self._always = between, also_in_eval
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.head(self._between(self, h) if self.training or self._always else h)


def members(*ranks: int, seeds: int = 1) -> list[Member]:
    return [
        Member(name=f"r{r}-{seed}", seed=seed, lora=LoRAConfig(r=r, target_modules=["fc"], dropout=0.1))
        for r in ranks
        for seed in range(seeds)
    ]


def trained(
    model: nn.Module, chosen: list[Member], steps: int = 3
) -> tuple[dict[str, AdapterState], dict[str, AdapterState], Pack]:
    pack = Pack(model, chosen, lambda o, batch: F.cross_entropy(o, batch[1], reduction="none"))
    start = pack.states()
    x, y = numbers(5, 4), torch.tensor([0, 1, 2, 0, 1])
    batch = tuple(torch.stack([t] * len(pack.seeds)) for t in (x, y))
    with pack.attached((x, y), training=True):
        for _ in range(steps):
            pack.step(batch, torch.full((len(chosen),), 0.01, dtype=torch.float64), None, None)
    return start, pack.states(), pack


DRAWS: dict[str, Changed] = {
    "DropPath": lambda m, h: h * h.new_empty(len(h), 1).bernoulli_(0.7),
    "torch.rand": lambda m, h: h * (torch.rand(len(h), 1) > 0.3),
    "normal noise": lambda m, h: h + torch.randn_like(h),
    "dropout of channels": lambda m, h: F.dropout1d(h.unsqueeze(2), 0.3).squeeze(2),
    "a draw for all rows": lambda m, h: h if torch.rand([]) < 0.5 else -h,
    "alpha dropout": lambda m, h: F.alpha_dropout(h, 0.3, True),
    "a permutation": lambda m, h: h[:, torch.randperm(h.shape[1])],
    "numpy": lambda m, h: h * float(np.random.rand()),
    "random": lambda m, h: h * random.random(),
}


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", DRAWS)
def test_noise_is_the_same_alone_and_in_a_pack_whatever_the_global_seeds(name: str, seeds: int) -> None:
    together = trained(Model(DRAWS[name]), members(1, 3, seeds=seeds))[1]
    np.random.seed(7)
    random.seed(7)
    start, alone, _ = trained(Model(DRAWS[name]), members(3))
    assert update_difference(together["r3-0"], alone["r3-0"], start["r3-0"]) <= 1e-10
    silent = trained(Model(lambda m, h: h), members(3))[1]
    assert update_difference(alone["r3-0"], silent["r3-0"], start["r3-0"]) > 1e-3


def count(model: Any, h: Tensor) -> Tensor:
    model.fc.calls = getattr(model.fc, "calls", 0) + 1
    return h * model.fc.calls


def move(model: Any, h: Tensor) -> Tensor:
    model.mean.add_(h.detach().mean(0))
    return h - model.mean


@pytest.mark.parametrize(
    ("between", "also_in_eval", "message"),
    [
        (lambda m, h: h - h.mean(0), False, "in training they are mixed"),
        (lambda m, h: h + h.roll(2, 0), False, "in training they are mixed"),
        (lambda m, h: h * torch.softmax(h, 0), False, "in training they are mixed"),
        (lambda m, h: h - h.mean(0), True, "they are mixed"),
        (count, False, "differ from one forward pass to the next"),
        (lambda m, h: h * np.random.default_rng().random(), False, "differ from one forward pass to the next"),
        (lambda m, h: F.dropout(h, 0.3), True, "draws noise in eval mode too"),
        (move, False, r'changes the buffer "mean"'),
    ],
)
def test_what_ties_rows_or_steps_together_is_refused(between: Changed, also_in_eval: bool, message: str) -> None:
    model = Model(between, also_in_eval=also_in_eval)
    model.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
    with pytest.raises(PackError, match=message):
        trained(model, members(1, 2))
    assert not model.mean.any()


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.InstanceNorm1d(6, track_running_stats=True),
        lambda: nn.BatchNorm1d(6),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
        lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    ],
)
def test_statistics_of_normalisations_stay_as_they_are(norm: Callable[[], nn.Module]) -> None:
    model = Model(lambda m, h: m.norm(h.unsqueeze(2)).squeeze(2) if "Instance" in type(m.norm).__name__ else m.norm(h))
    model.norm = norm().double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, states, _ = trained(model, members(1, 3))
    start, alone, _ = trained(model, members(3))
    assert update_difference(states["r3-0"], alone["r3-0"], start["r3-0"]) <= 1e-10
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def differentiated(model: Any, h: Tensor) -> Tensor:
    with torch.enable_grad():
        x = h.detach().requires_grad_()
        energy = model.fc(x[:, :4]).tanh().sum()
        return h * torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.parametrize(
    "between", [differentiated, lambda m, h: h.relu_(), lambda m, h: h.mul_(2), lambda m, h: h.masked_fill_(h < 0, 0.0)]
)
def test_derivatives_inside_and_writes_in_place_train_as_alone(between: Changed) -> None:
    start, states, _ = trained(Model(between, also_in_eval=True), members(1, 3))
    _, alone, _ = trained(Model(between, also_in_eval=True), members(3))
    assert update_difference(states["r3-0"], alone["r3-0"], start["r3-0"]) <= 1e-10


def test_a_layer_that_no_step_uses_stays_as_it_is() -> None:
    model = Model(lambda m, h: h).double()
    model.other = nn.Linear(4, 4).double()
    chosen = [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=["fc", "other"])) for r in (1, 2)]
    pack = Pack(model, chosen, lambda o, batch: F.cross_entropy(o, batch[1], reduction="none"))
    start, rate = pack.states(), torch.full((2,), 0.1, dtype=torch.float64)
    x, y = numbers(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with pack.attached((x, y), training=True):
        for _ in range(3):
            pack.step((x.unsqueeze(0), y.unsqueeze(0)), rate, rate, None)
    for name, state in pack.states().items():
        assert torch.equal(state["other.A"], start[name]["other.A"])
        assert not torch.equal(state["fc.A"], start[name]["fc.A"])
    assert pack.optimiser_state()["r1"]["missed/other.A"] == 3


def test_packs_of_one_sweep_inspect_the_base_once_for_each_example_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inspections, looks = Model(lambda _, h: F.dropout(h, 0.5)), Inspections(), list[bool]()

    def looking(*given: Any, training: bool, **more: Any) -> Any:
        looks.append(training)
        return inspect_model(*given, training=training, **more)

    monkeypatch.setattr("rankwise.pack.model.inspection.inspect_model", looking)

    def updates(r: int, shared: Inspections | None, example: Tensor) -> Tensor:
        pack = Pack(
            model,
            [Member(name="a", seed=1, lora=LoRAConfig(r=r, target_modules=["fc"]))],
            lambda out, batch: out.square().mean(1),
            call=call,
            inspections=shared,
        )
        with pack.attached(example, training=True):
            pack.step(example.unsqueeze(0), torch.tensor([0.1], dtype=torch.float64), None, None)
        return pack.store.theta.detach().clone()

    def call(model: nn.Module, batch: Any) -> Tensor:
        return model(batch)

    x, other = numbers(8, 4), numbers(8, 4) + 1
    alone = [updates(r, None, x) for r in (1, 2)]
    looks.clear()
    for r, expected in zip((1, 2), alone, strict=True):
        torch.testing.assert_close(updates(r, inspections, x), expected, rtol=1e-9, atol=1e-12)
    assert looks == [True], "the second pack has other adapters over the same base"
    updates(2, inspections, other)
    assert looks == [True, True], "other rows"
    updates(2, pickle.loads(pickle.dumps(inspections)), x)
    assert looks == [True, True, True], "a copy may be used beside another model"
