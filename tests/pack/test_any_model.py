"""Packs over models of many kinds give each adapter the updates that the plain loop gives it alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plain_loop import KeyedDropout, Plain, train_plainly
from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import inject
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.parameters import adapter_tensors, trainable_parameters
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from reference import update_difference
from small_models import KINDS, Batch, Kind, call

SEEDS = (0, 1, 2)


@dataclass
class Case:
    member: Member
    plain: Plain


def cases_of(kind: Kind) -> list[Case]:
    """Five adapters that differ in everything. Their rates are low enough that rounding isn't blown up by training."""
    every, some, part = kind.targets
    heads = [name for name in kind.modules_to_save if name != "norm"]

    def case(name: str, plain: Plain, whole: tuple[str, ...] = (), **lora: Any) -> Case:
        config = LoRAConfig(seed=plain.seed, dropout=plain.dropout, **lora)
        plain = replace(plain, scale=config.scale())
        return Case(Member(name=name, seed=plain.seed, lora=config, modules_to_save=whole), plain)

    return [
        case("all", Plain(0, 1e-3), r=2, target_modules=every),
        case("some", Plain(0, 3e-3, dropout=0.2), r=5, target_modules=some, scaling="alpha/sqrt(r)"),
        case("part", Plain(0, 3e-3, seed=1, clip=0.1), r=1, target_modules=part),
        case(
            "head",
            Plain(0, 1e-3, 1, weight_decay=0.1),
            kind.modules_to_save,
            r=8,
            target_modules=every,
            exclude_modules=heads,
        ),
        case("other", Plain(0, 2e-3, seed=2), r=2, target_modules=every),
    ]


def made(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    return kind.make().double()


def batches_of(kind: Kind, steps: int) -> dict[int, list[Batch]]:
    def wide(batch: Batch) -> Batch:
        return {key: t.double() if t.is_floating_point() else t for key, t in batch.items()}

    return {seed: [wide(kind.batch(1000 * seed + step)) for step in range(steps)] for seed in SEEDS}


def together(
    model: nn.Module,
    kind: Kind,
    cases: Sequence[Case],
    batches: dict[int, list[Batch]],
    leave: dict[int, Sequence[str]] | None = None,
    rows: int | None = None,
) -> dict[str, AdapterState]:
    pack = Pack(model, [case.member for case in cases], kind.loss, call=call)
    plain = {case.member.name: case.plain for case in cases}
    done: dict[str, AdapterState] = {}
    steps = len(batches[0])
    with pack.attached(batches[0][0], training=True):
        for step in range(steps):
            for name in (leave or {}).get(step, ()):
                done[name] = pack.states()[name]
                pack.keep(torch.tensor([m.member.name != name for m in pack.members]))
            own = [plain[m.member.name] for m in pack.members]
            batch = {key: torch.stack([batches[seed][step][key] for seed in pack.seeds]) for key in batches[0][0]}
            numbers = ([p.lr for p in own], [p.weight_decay for p in own], [p.clip or torch.inf for p in own])
            pack.step(batch, *(torch.tensor(column, dtype=torch.float64) for column in numbers), rows=rows)
    return {**pack.states(), **done}


def alone(model: nn.Module, kind: Kind, case: Case, start: AdapterState, batches: Sequence[Batch]) -> AdapterState:
    def update(module: nn.Module, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        row = layer_type_of(module)
        return x @ A.T @ B.T if row is None or row.linear else row.update(module, x, A, B)

    return train_plainly(copy.deepcopy(model), case.plain, start, batches, call, kind.loss, update)


@pytest.mark.parametrize("steps", [15, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_updates_are_those_of_the_plain_loop_also_when_two_stop_early(name: str, steps: int) -> None:
    kind = KINDS[name]
    model, cases, batches = made(kind), cases_of(kind), batches_of(kind, steps)
    before = copy.deepcopy(model.state_dict())
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    ended = {"part": steps // 5, "other": 2 * steps // 5}
    ours = together(model, kind, cases, batches, {step: [name] for name, step in ended.items()})
    for case in cases:
        key = case.member.name
        theirs = alone(model, kind, case, start[key], batches[case.plain.seed][: ended.get(key, steps)])
        assert update_difference(ours[key], theirs, start[key]) <= 1e-10, key
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["cnn", "bert"])
def test_a_diverging_adapter_and_a_split_change_nothing(name: str) -> None:
    kind = KINDS[name]
    model, cases, batches = made(kind), cases_of(kind), batches_of(kind, 6)
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    whole = together(model, kind, cases, batches)
    diverging = [replace(cases[0], plain=replace(cases[0].plain, lr=1e200)), *cases[1:]]
    with_divergence = together(model, kind, diverging, batches)
    first, second = together(model, kind, cases[:2], batches), together(model, kind, cases[2:], batches)
    assert not all(value.isfinite().all() for value in with_divergence["all"].values())
    for case in cases[1:]:
        key = case.member.name
        assert update_difference(with_divergence[key], whole[key], start[key]) <= 1e-10
        assert update_difference({**first, **second}[key], whole[key], start[key]) <= 1e-10


@pytest.mark.parametrize("name", ["cnn", "bert", "mlp"])
def test_parts_of_a_batch_give_the_step_of_the_whole(name: str) -> None:
    kind = KINDS[name]
    model, cases, batches = made(kind), cases_of(kind), batches_of(kind, 6)
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    whole = together(model, kind, cases, batches)
    parts = together(model, kind, cases, batches, rows=4)
    for key in whole:
        assert update_difference(parts[key], whole[key], start[key]) <= 1e-10


def test_a_loss_over_tokens_is_their_mean_in_the_whole_step() -> None:
    kind = KINDS["gpt2"]

    def sums(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        wanted = batch["labels"][:, 1:].flatten()
        total = F.cross_entropy(outputs[:, :-1].flatten(0, 1), wanted, reduction="sum")
        return total, (wanted != -100).sum()

    model, batches = made(kind), batches_of(kind, 6)
    cases = [case for case in cases_of(kind) if case.member.name != "head"]
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    whole = together(model, kind, cases, batches)
    parts = together(model, replace(kind, loss=sums), cases, batches, rows=1)
    for key in whole:
        assert update_difference(parts[key], whole[key], start[key]) <= 1e-10


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    kind = KINDS["llama"]
    cases, batches = cases_of(kind), batches_of(kind, 6)
    plain, checkpointed = made(kind), made(kind)
    start = Pack(plain, [case.member for case in cases], kind.loss, call=call).states()
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        checkpointed.enable_input_require_grads()
    ours, theirs = (together(model, kind, cases, batches) for model in (checkpointed, plain))
    for key in theirs:
        assert update_difference(ours[key], theirs[key], start[key]) <= 1e-10


def test_fused_attention_with_dropout_is_keyed() -> None:
    kind = KINDS["gpt2"]
    cases, batches = cases_of(kind), batches_of(kind, 6)
    eager, fused = made(kind), made(kind)
    fused.config._attn_implementation = "sdpa"
    start = Pack(eager, [case.member for case in cases], kind.loss, call=call).states()
    ours, theirs = (together(model, kind, cases, batches) for model in (fused, eager))
    for key in theirs:
        assert update_difference(ours[key], theirs[key], start[key]) <= 1e-10


def test_only_upper_blocks_adapted_part_there() -> None:
    kind = KINDS["llama"]
    model, batches = made(kind), batches_of(kind, 1)
    pack = Pack(model, [cases_of(kind)[2].member], kind.loss, call=call)
    rows: list[int] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda m, a, y: rows.append(len(y)))
    both = Pack(model, [replace(pack.members[0].member, name=name) for name in "ab"], kind.loss, call=call)
    with both.attached(batches[0][0], training=True):
        rows.clear()
        one = torch.ones(2, dtype=torch.float64)
        both.step({key: t.unsqueeze(0) for key, t in batches[0][0].items()}, one, None, None)
    assert rows == [6, 12]


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_rows_that_are_mixed_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), Centred()), nn.Linear(4, 4))
    pack = Pack(model, [Member(name="a", lora=LoRAConfig(r=1))], lambda y, batch: F.cross_entropy(y, batch[1]))
    example = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(4, dtype=torch.long))
    with pytest.raises(PackError, match=r'mixed in "1\.1"'), pack.attached(example, training=True):
        pass


class Alike(nn.Module):
    """The scores of an in-batch contrastive loss."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.T


def test_an_in_batch_contrastive_loss_in_the_forward_is_refused_by_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.alike = nn.Linear(6, 4), Alike()

        def forward(self, x: Tensor) -> Tensor:
            return F.cross_entropy(self.alike(self.encoder(x)), torch.arange(len(x)), reduction="none")

    pack = Pack(Model(), [Member(name=f"r{r}", lora=LoRAConfig(r=r)) for r in (1, 2)], lambda y, batch: y)
    example = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)
    with pytest.raises(PackError, match='mixed in "alike"'), pack.attached(example, training=True):
        pass


def test_layers_that_are_never_called_run_adapter_by_adapter_and_say_so() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.inner.weight) + self.inner.bias

    torch.manual_seed(0)
    model = Reads().double()
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r)) for r in (1, 2)]
    pack = Pack(model, members, lambda y, batch: F.cross_entropy(y, batch[1], reduction="none"))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    example, lr = (x[0], torch.zeros(5, dtype=torch.long)), torch.full((2,), 0.1, dtype=torch.float64)
    with pack.attached(example, training=True):
        losses = [pack.step((x[:1], torch.zeros(1, 5, dtype=torch.long)), lr, None, None) for _ in range(5)]
    assert all(losses[-1] < losses[0])
    assert any("one after another" in note for note in pack.notes)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.up(x).relu())


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.unsqueeze(1).expand(-1, 3, -1) * torch.arange(1, 4, dtype=x.dtype).view(3, 1)).mean(1)


def injected_and_trained(
    model: nn.Module, member: Member, x: Tensor, y: Tensor, masks: type[KeyedDropout] = KeyedDropout
) -> AdapterState:
    """An adapter alone: `inject` and torch's AdamW, 5 steps on one batch."""
    alone = copy.deepcopy(model).train()
    assert member.lora is not None
    inject(alone, member.lora)
    mode = masks(alone, member.seed)
    optimiser = torch.optim.AdamW(trainable_parameters(alone), lr=1e-2, weight_decay=0.0)
    for step in range(5):
        optimiser.zero_grad()
        mode.step = step
        mode.calls.clear()
        with mode:
            F.cross_entropy(alone(x), y).backward()
        optimiser.step()
    pairs = adapter_tensors(alone).items()
    return {f"{name}.{key}": t.detach() for name, pair in pairs for key, t in zip("AB", pair, strict=True)}


@pytest.mark.parametrize(("make", "targets"), [(Tied, "up"), (Attends, "all-linear")])
def test_shared_weights_and_those_read_without_a_call_train_as_injected(make: type[nn.Module], targets: str) -> None:
    torch.manual_seed(0)
    model = make().double()
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=targets)) for r in (1, 3)]
    x, y = torch.randn(1, 5, 4, dtype=torch.float64), torch.arange(5).remainder(4).view(1, 5)
    pack = Pack(model, members, lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"))
    start = pack.states()
    with pack.attached((x[0], y[0]), training=True):
        for _ in range(5):
            pack.step((x, y), torch.full((2,), 1e-2, dtype=torch.float64), None, None)
    for member in members:
        theirs = injected_and_trained(model, member, x[0], y[0])
        assert update_difference(pack.states()[member.name], theirs, start[member.name]) <= 1e-10


class DropoutOfAdapters(KeyedDropout):
    """The masks of injected adapters, in a model without noise of its own."""

    def dropped(self, module: str, x: Tensor, p: float) -> Tensor:
        return super().dropped(f"{module}.lora", x, p)


def test_dropout_of_adapters_that_run_one_after_another_is_that_of_injected_ones() -> None:
    torch.manual_seed(0)
    model = Attends().double()
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, dropout=p)) for r, p in ((1, 0.3), (3, 0.0), (2, 0.1))]
    # It doesn't act on single rows of a Linear.
    rows = {"target_modules": "block.self_attn.in_proj_weight", "trainable_tokens": {"block.linear2": [0, 3]}}
    members.append(Member(name="rows", lora=LoRAConfig(r=2, dropout=0.5, **rows)))
    x, y = torch.randn(1, 5, 4, dtype=torch.float64), torch.arange(5).remainder(4).view(1, 5)
    pack = Pack(model, members, lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"))
    start = pack.states()
    with pack.attached((x[0], y[0]), training=True):
        for _ in range(5):
            pack.step((x, y), torch.full((4,), 1e-2, dtype=torch.float64), None, None)
    assert any("doesn't act on block.self_attn.in_proj_weight" in note for note in pack.notes)
    for member in members:
        theirs = injected_and_trained(model, member, x[0], y[0], DropoutOfAdapters)
        assert update_difference(pack.states()[member.name], theirs, start[member.name]) <= 1e-10


class Experts(nn.Module):
    """A mixture of experts as transformers keeps it: stacks of matrices, read without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("eoi,bi->beo", self.up, x).relu()
        return torch.einsum("eoi,bei,be->bo", self.down, hidden, self.router(x).softmax(-1))


def test_stacks_of_experts_train_as_injected_adapter_by_adapter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Experts()).double()
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=["0", "up", "down"])) for r in (1, 3, 4)]
    x, y = torch.randn(1, 5, 4, dtype=torch.float64), torch.arange(5).remainder(4).view(1, 5)
    pack = Pack(model, members, lambda out, batch: F.cross_entropy(out, batch[1], reduction="none"))
    start = pack.states()
    with pack.attached((x[0], y[0]), training=True):
        for _ in range(5):
            pack.step((x, y), torch.full((3,), 1e-2, dtype=torch.float64), None, None)
    assert any("one after another" in note for note in pack.notes)
    for member in members:
        theirs = injected_and_trained(model, member, x[0], y[0])
        assert update_difference(pack.states()[member.name], theirs, start[member.name]) <= 1e-10
