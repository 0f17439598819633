"""SGD in packs is torch's for each adapter: momentum, Nesterov's step, weight decay, each adapter its own."""

from dataclasses import replace
from typing import Any

import pytest

from pack.test_any_model import Case, alone, batches_of, made, together
from plain_loop import Plain
from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.optimisers import SGD
from rankwise.pack.pack import Pack
from rankwise.sweeps.plan.plan import plan_packs
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training
from reference import update_difference
from small_models import KINDS, Kind, call
from small_sweep import accuracy, loss, same_when_gone_on_with, small_model, small_run, some_data


def cases_of(kind: Kind) -> list[Case]:
    every, some, _ = kind.targets
    heads = [name for name in kind.modules_to_save if name != "norm"]

    def case(name: str, plain: Plain, whole: tuple[str, ...] = (), **lora: Any) -> Case:
        config = LoRAConfig(seed=plain.seed, dropout=plain.dropout, **lora)
        momentum, nesterov = plain.sgd or (0.0, False)
        member = Member(
            name=name,
            seed=plain.seed,
            lora=config,
            modules_to_save=whole,
            optimiser=SGD(momentum=momentum, nesterov=nesterov),
        )
        return Case(member, replace(plain, scale=config.scale()))

    return [
        case("plain", Plain(0, 1e-3, sgd=(0.0, False)), r=2, target_modules=every),
        case("heavy", Plain(0, 2e-3, sgd=(0.9, False), dropout=0.2), r=2, target_modules=some),
        case("ahead", Plain(0, 1e-3, seed=1, sgd=(0.8, True), clip=0.1), r=5, target_modules=every),
        case(
            "head",
            Plain(0, 1e-3, 1, weight_decay=0.1, sgd=(0.5, True)),
            kind.modules_to_save,
            r=2,
            target_modules=every,
            exclude_modules=heads,
        ),
    ]


@pytest.mark.parametrize("steps", [15, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["mlp", "cnn", "bert"])
def test_updates_are_those_of_the_plain_loop(name: str, steps: int) -> None:
    kind, early = KINDS[name], 2 * steps // 5
    model, cases, batches = made(kind), cases_of(kind), batches_of(kind, steps)
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    ours = together(model, kind, cases, batches, {early: ["plain"]})
    for case in cases:
        key = case.member.name
        theirs = alone(model, kind, case, start[key], batches[case.plain.seed][: early if key == "plain" else steps])
        assert update_difference(ours[key], theirs, start[key]) <= 1e-10, key


@pytest.mark.parametrize("nesterov", [False, True])
def test_alike_adapters_take_the_short_way_to_the_same(nesterov: bool) -> None:
    kind = KINDS["mlp"]
    model, batches = made(kind), batches_of(kind, 20)
    (case, *_) = cases_of(kind)
    member = replace(case.member, optimiser=SGD(momentum=0.9, nesterov=nesterov))
    case = Case(member, replace(case.plain, sgd=(0.9, nesterov)))
    start = Pack(model, [member], kind.loss, call=call).states()
    ours = together(model, kind, [case], batches)["plain"]
    theirs = alone(model, kind, case, start["plain"], batches[0])
    assert update_difference(ours, theirs, start["plain"]) <= 1e-10


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    settings = Training(lr=0.05, optimiser=SGD(momentum=0.9, nesterov=True), batch_size=8, epochs=4)
    runs = [
        (Member(name=f"r{r}", lora=LoRAConfig(r=r), optimiser=SGD(momentum=m, nesterov=bool(m))), settings)
        for r, m in ((1, 0.9), (4, 0.0))
    ]

    def training() -> PackTraining:
        return PackTraining(small_model(), runs, some_data(40, 0), some_data(30, 1), loss, accuracy)

    first = training()
    first.advance()
    state = first.state()
    assert {key.split("/")[2] for key in state.tensors if key.startswith("moments/")} == {"velocity"}
    same_when_gone_on_with(training, state)


def test_optimisers_share_no_pack() -> None:
    runs = [small_run("r1"), small_run("r4", optimiser="sgd"), small_run("r2")]
    assert [[run.name for run in pack] for pack in plan_packs(runs)] == [
        ["r1-lr0.03-s0", "r2-lr0.03-s0"],
        ["r4-lr0.03-s0"],
    ]
    members = [Member(name="a", lora=LoRAConfig(r=1)), Member(name="b", lora=LoRAConfig(r=1), optimiser=SGD())]
    with pytest.raises(PackError, match=r"optimisers \['adamw', 'sgd'\]; those of a pack have one"):
        Pack(small_model(), members, loss)
