"""Packs over bases of half precision: what is trained stays in float32, and float16's small gradients survive."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pack.step.test_sgd import cases_of
from pack.test_any_model import alone, made
from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.model.chain import Chain
from rankwise.pack.optimisers import SGD
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training
from reference import update_difference
from small_models import KINDS, Batch, call
from small_sweep import accuracy, same_when_gone_on_with, small_model, some_data

HALF = [torch.bfloat16, torch.float16]


def in_half(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype)


def small(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def batch_of(seed: int, dtype: torch.dtype, rows: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=g).to(dtype), torch.randint(0, 3, (rows,), generator=g)


def row_loss(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs.float(), batch[1], reduction="none")


def trained(
    model: nn.Module,
    members: list[Member],
    dtype: torch.dtype,
    loss: Callable[..., Any] = row_loss,
    *,
    steps: int = 10,
    lr: float = 1e-2,
) -> tuple[Pack, dict[str, AdapterState]]:
    pack = Pack(model, members, loss)
    start = pack.states()
    with pack.attached(batch_of(0, dtype), training=True):
        for step in range(steps):
            seeds = pack.seeds
            batches = [batch_of(100 * seed + step, dtype) for seed in seeds]
            stacked = tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
            pack.step(stacked, torch.full((len(pack),), lr), None, None)
    return pack, start


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["mlp", "cnn", "llama", "bert"])
def test_updates_are_close_to_those_over_the_same_weights_in_float64(name: str, dtype: torch.dtype) -> None:
    kind = KINDS[name]
    model = in_half(made(kind), dtype)
    wide, cases = in_half(model, torch.float64), cases_of(kind)
    batches = {seed: [kind.batch(1000 * seed + step) for step in range(10)] for seed in (0, 1)}

    def to(batch: Batch, dtype: torch.dtype) -> Batch:
        return {key: t.to(dtype) if t.is_floating_point() else t for key, t in batch.items()}

    def loss(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return kind.loss(outputs.float(), batch)

    pack = Pack(model, [case.member for case in cases], loss, call=call)
    assert pack.store.theta.dtype == pack.store.grads.dtype == torch.float32
    start = pack.states()
    plain = {case.member.name: case.plain for case in cases}
    with pack.attached(to(batches[0][0], dtype), training=True):
        for step in range(10):
            own = [plain[m.member.name] for m in pack.members]
            parts = [to(batches[seed][step], dtype) for seed in pack.seeds]
            batch = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
            numbers = ([p.lr for p in own], [p.weight_decay for p in own], [p.clip or torch.inf for p in own])
            lr, weight_decay, clip = (torch.tensor(column) for column in numbers)
            pack.step(batch, lr, weight_decay, clip)
    limit = {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for case in cases:
        key = case.member.name
        rounded = [to(to(batch, dtype), torch.float64) for batch in batches[case.plain.seed]]
        theirs = alone(wide, kind, case, {k: v.double() for k, v in start[key].items()}, rounded)
        ours = {k: v.double() for k, v in pack.states()[key].items()}
        assert update_difference(ours, theirs, {k: v.double() for k, v in start[key].items()}) <= limit, key


@pytest.mark.parametrize("dtype", HALF)
def test_updates_too_small_for_the_bases_type_add_up(dtype: torch.dtype) -> None:
    lr = 1e-6  # A is about 0.4: half precision has no number between it and 0.4 + 1e-6
    members = [Member(name="lora", lora=LoRAConfig(r=2)), Member(name="whole", modules_to_save=("0", "2"))]
    pack, start = trained(small(dtype), members, dtype, steps=20, lr=lr)
    moved = pack.states()["whole"]["0.weight"] - start["whole"]["0.weight"]
    assert moved.abs().median() >= 2 * lr
    assert (pack.states()["lora"]["0.B"].abs() > 0).any()


def test_gradients_too_small_for_float16_are_scaled() -> None:
    def tiny(outputs: Tensor, batch: Any) -> Tensor:
        return row_loss(outputs, batch) * 1e-6

    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r), optimiser=SGD()) for r in (1, 8)]
    pack, start = trained(small(torch.float16), members, torch.float16, tiny, lr=1e4)
    exact, _ = trained(small(torch.float16).float(), members, torch.float32, tiny, lr=1e4)
    for name, state in pack.states().items():
        assert update_difference(state, exact.states()[name], start[name]) <= 0.02


def test_an_overflow_leaves_out_the_steps_of_its_adapter_alone() -> None:
    def loss(outputs: Tensor, batch: Any) -> Tensor:
        # The first row of seed 7 is marked; times the factor its loss is too large for float16 at first.
        return row_loss(outputs, batch) * torch.where(batch[0][:, 0] > 5, 1000.0, 1.0)

    def batches(seed: int, step: int) -> tuple[Tensor, Tensor]:
        x, y = batch_of(100 * seed + step, torch.float16)
        if seed == 7:
            x[0, 0] = 6.0
        return x, y

    def run(members: list[Member]) -> tuple[Pack, dict[str, AdapterState], list[Tensor]]:
        pack, factors = Pack(small(torch.float16), members, loss), []
        start = pack.states()
        with pack.attached(batch_of(0, torch.float16), training=True):
            for step in range(12):
                parts = [batches(seed, step) for seed in pack.seeds]
                stacked = tuple(torch.stack(of) for of in zip(*parts, strict=True))
                pack.step(stacked, torch.full((len(pack),), 1e-2), None, torch.full((len(pack),), 1.0))
                factors.append(pack.scaling_state()["factor"].clone())
        return pack, start, factors

    calm, wild = Member(name="calm", lora=LoRAConfig(r=2)), Member(name="wild", seed=7, lora=LoRAConfig(r=2))
    (both, start, factors), (one, *_), (other, *_) = run([calm, wild]), run([calm]), run([wild])
    assert torch.stack(factors)[:, 0].eq(2.0**16).all()
    assert factors[0][1] == 2.0**15
    assert factors[-1][1] == factors[-2][1] < 2.0**15
    for name, own in (("calm", one), ("wild", other)):
        assert update_difference(both.states()[name], own.states()[name], start[name]) <= 1e-3
    assert all(value.isfinite().all() for value in both.states()["wild"].values())
    assert (both.states()["wild"]["0.B"] != 0).any()


def test_the_factor_doubles_after_enough_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.pack.step.loss_scale.STEPS_UNTIL_DOUBLED", 4)
    pack, _ = trained(small(torch.float16), [Member(name="a", lora=LoRAConfig(r=2))], torch.float16, steps=9)
    assert pack.scaling_state()["factor"].tolist() == [2.0**18]
    assert pack.scaling_state()["good_steps"].tolist() == [1.0]


@pytest.mark.parametrize("dtype", HALF)
def test_it_goes_on_from_its_state_bit_for_bit(dtype: torch.dtype) -> None:
    runs = [
        # A large alpha: its gradients overflow for longer, so that factors differ.
        (Member(name=f"r{r}", lora=LoRAConfig(r=r, alpha=alpha)), Training(lr=1e-4, batch_size=8, epochs=n, clip=1.0))
        for r, n, alpha in ((1, 2, 32.0), (4, 4, 32.0), (8, 3, 2e5))
    ]

    def data(n: int, seed: int) -> tuple[Tensor, ...]:
        x, y = some_data(n, seed)
        return x.to(dtype), y

    def training() -> PackTraining:
        return PackTraining(model, runs, data(40, 0), data(30, 1), row_loss, accuracy)

    model = small_model().to(dtype)
    first = training()
    first.advance()
    state = first.state()
    assert dtype != torch.float16 or len(set(state.vectors("scaling")["factor"].tolist())) == 2
    mine = same_when_gone_on_with(training, state)
    assert any(key.startswith("vector/scaling.") for key in mine) == (dtype == torch.float16)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1.0, 0.05])
def test_rows_that_mix_are_refused(dtype: torch.dtype, size: float) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return size * (3 * self.layer(x - x.mean(0))).softmax(-1)

    torch.manual_seed(0)
    pack = Pack(Mixing().to(dtype), [Member(name="a", lora=LoRAConfig(r=2))], row_loss)
    with pytest.raises(PackError, match="depends on the other rows"), pack.attached(batch_of(0, dtype), training=True):
        pass


def test_dora_takes_its_norms_in_float32() -> None:
    model = small(torch.bfloat16)
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, variant="dora"), optimiser=SGD()) for r in (1, 4)]
    pack, start = trained(model, members, torch.bfloat16)
    exact, _ = trained(in_half(model, torch.float32), members, torch.float32)
    for name, state in pack.states().items():
        assert update_difference(state, exact.states()[name], start[name]) <= 0.05


@pytest.mark.parametrize("half", HALF)
def test_layers_of_other_types_are_computed_in_their_own(half: torch.dtype) -> None:
    class Mixed(nn.Module):
        """Norm and head in float32, as transformers keeps some layers."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.body, self.head = nn.LayerNorm(6), nn.Linear(6, 8).to(half), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.norm(x.float()).to(half)).relu().float())

    class Exact(Mixed):
        """The same weights in float32."""

        def __init__(self, mixed: nn.Module) -> None:
            super().__init__()
            self.float().load_state_dict(mixed.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.norm(x)).relu())

    torch.manual_seed(0)
    model = Mixed()
    members = [
        Member(name="all", lora=LoRAConfig(r=2), optimiser=SGD()),
        Member(name="head", lora=LoRAConfig(r=2, exclude_modules=["head"]), modules_to_save=("head",), optimiser=SGD()),
        Member(name="norm", modules_to_save=("norm", "body"), optimiser=SGD()),
    ]
    pack, start = trained(model, members, torch.float32)
    assert not pack.notes, "all in one pass"
    assert bool(pack.scaling_state()) == (half == torch.float16)
    exact, _ = trained(Exact(model), members, torch.float32)
    for name, state in pack.states().items():
        assert update_difference(state, exact.states()[name], start[name]) <= 0.05


def test_running_out_of_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    def wild(outputs: Tensor, batch: Any) -> Tensor:
        return row_loss(outputs, batch) * 1000

    pack, _ = trained(small(torch.float16), [Member(name="a", lora=LoRAConfig(r=2))], torch.float16, wild, steps=1)
    before = (pack.states(), pack.scaling_state())
    assert before[1]["factor"].item() == 2.0**15
    monkeypatch.setattr(pack._optimiser, "step", full)
    with pack.attached(batch_of(0, torch.float16), training=True), pytest.raises(torch.OutOfMemoryError):
        pack.step(tuple(t.unsqueeze(0) for t in batch_of(1, torch.float16)), torch.tensor([1e-2]), None, None)
    assert torch.equal(before[0]["a"]["0.B"], pack.states()["a"]["0.B"])
    assert all(torch.equal(value, pack.scaling_state()[key]) for key, value in before[1].items())


def test_parts_of_a_batch_overflow_no_sooner_than_the_whole() -> None:
    ends: list[tuple[float, AdapterState]] = []
    start: AdapterState = {}
    for rows in (None, 8):
        pack = Pack(small(torch.float16), [Member(name="a", lora=LoRAConfig(r=2))], row_loss)
        start = pack.states()["a"]
        with pack.attached(batch_of(0, torch.float16), training=True):
            for step in range(10):
                batch = tuple(t.unsqueeze(0) for t in batch_of(step, torch.float16, rows=64))
                pack.step(batch, torch.tensor([1e-2]), None, None, rows=rows)
        ends.append((pack.scaling_state()["factor"].item(), pack.states()["a"]))
    (whole, one), (parts, other) = ends
    assert whole == parts
    assert update_difference(other, one, start) <= 0.05


def test_gradients_that_are_never_finite_end_a_run() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return dy * torch.nan

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return row_loss(Wrong.apply(outputs), batch)

    runs = [(Member(name="a", lora=LoRAConfig(r=1)), Training(lr=0.05, batch_size=8, epochs=9))]
    x, y = some_data(80, 0)
    data = (x.half(), y)
    training = PackTraining(small_model().half(), runs, data, data, loss, accuracy)
    ended = []
    while not training.done:
        epoch = training.advance()
        ended += epoch.ended if epoch is not None else []
    assert [(outcome.status, outcome.epochs) for outcome in ended] == [("diverged", 3)], "after 25 steps, of 10 each"


class OwnSequential(nn.Sequential):
    """A class of its own, which a pack doesn't pass by hand."""


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", [nn.Sequential, OwnSequential])
def test_no_activation_is_kept_in_float32(
    dtype: torch.dtype, kind: type[nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3)]
    model = kind(*layers).to(dtype)
    pack = Pack(model, [Member(name=f"r{r}", lora=LoRAConfig(r=r)) for r in (1, 4)], row_loss)
    batch = tuple(t.unsqueeze(0) for t in batch_of(1, dtype, rows=50))
    kept: list[Tensor] = []
    real = Chain.backward

    def backward(chain: Chain) -> None:
        kept.extend(t for t in tree_leaves(chain._saved) if isinstance(t, Tensor))  # pyright: ignore[reportPrivateUsage]
        real(chain)

    monkeypatch.setattr(Chain, "backward", backward)
    with (
        pack.attached(batch_of(0, dtype), training=True),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        pack.gradients(batch)
    outputs = 2 * 50 * 3
    assert any(t.dtype == dtype and t.numel() == 2 * 50 * 64 for t in kept)
    assert not [t.shape for t in kept if t.dtype == torch.float32 and t.numel() > outputs]
