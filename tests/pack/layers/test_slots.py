"""The small parts of a pack: groups, buckets, forwards, the optimiser."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reference as ref
from rankwise.lora.config import LoRAConfig
from rankwise.pack.groups import Groups
from rankwise.pack.member import Member
from rankwise.pack.noise.forwards import replaced_forwards
from rankwise.pack.resolved import AdapterState, bucket_rank, resolve
from rankwise.pack.stacks.store import Store
from rankwise.pack.step.adamw import PackedAdamW
from rankwise.pack.step.clipping import clip_gradients

CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_fan_out_gives_every_adapter_its_batch(batch_of: list[int]) -> None:
    t = torch.arange(4.0).view(4, 1).expand(4, 3)
    assert Groups(batch_of, 4, CPU).fan_out(t)[:, 0].tolist() == [float(g) for g in batch_of]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_runs_cover_a_stretch_once_and_in_order(batch_of: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(batch_of) - 1))
    stop = data.draw(st.integers(start + 1, len(batch_of)))
    runs = Groups(batch_of, 4, CPU).runs(start, stop)
    told = [batch for run in runs for batch in range(run.batches.start, run.batches.stop) for _ in range(run.each)]
    assert told == batch_of[start:stop]
    assert [run.adapters.start for run in runs] == [0, *[run.adapters.stop for run in runs[:-1]]]


def test_seeds_with_the_same_configurations_are_one_run() -> None:
    (run,) = Groups([9, 0, 0, 1, 1, 2, 2, 9], 3, CPU).runs(1, 7)
    assert (run.batches, run.adapters, run.each) == (slice(0, 3), slice(0, 6), 2)


def store(dtype: torch.dtype = torch.float64) -> Store:
    model = nn.Sequential(nn.Linear(3, 2)).to(dtype)
    members = [resolve(model, Member(name=f"r{r}", lora=LoRAConfig(r=r))) for r in (1, 2)]
    return Store([members], model, {}, CPU, dtype)


def row(state: AdapterState) -> torch.Tensor:
    return torch.cat([state[key].flatten() for key in sorted(state)])


def test_stacks_share_the_vectors_memory_and_states_are_cut_to_the_rank() -> None:
    numbers = store()
    A, B = numbers.low_rank(0, "0")
    assert (A.shape, B.shape) == ((2, 2, 3), (2, 2, 2))
    numbers.theta += 1
    numbers.refresh()
    assert B[:, 0, 0].tolist() == [32.0, 16.0]
    state = numbers.read(numbers.theta)["r1"]
    assert {key: tuple(value.shape) for key, value in state.items()} == {"0.A": (1, 3), "0.B": (2, 1)}
    assert torch.equal(state["0.A"], A[0, :1])


def test_gradients_overwrite_in_a_new_step_and_add_within_one() -> None:
    numbers = store()
    numbers.grads.fill_(torch.nan)
    gradient = numbers.gradient(0, "0.A")
    left, right = torch.ones(2, 2, 1).double(), torch.ones(2, 1, 3).double()
    numbers.step_runs[0] = True
    for _ in range(2):
        numbers.begin()
        gradient.add(left, right)
        gradient.copy(torch.ones(2, 2, 3).double())
        numbers.finish()
        assert numbers.stack(0, "0.A").shape == gradient.stack.shape
        assert (gradient.stack == 2).all()
        assert (numbers.gradient(0, "0.B").stack == 0).all(), "nothing was written here"


@pytest.mark.parametrize("r", [1, 16, 17, 63, 64, 65, 1000])
def test_a_bucket_holds_its_rank(r: int) -> None:
    assert bucket_rank(r) >= r
    assert bucket_rank(bucket_rank(r)) == bucket_rank(r)


@pytest.mark.parametrize(
    ("rates", "decays"), [((1e-2, 3e-3), (0.1, 0.0)), ((1e-2, 1e-2), (0.1, 0.1)), ((1e-2, 3e-3), (0.0, 0.0))]
)
def test_adamw_is_torchs_for_each_adapter_with_its_own_rate_and_decay(
    rates: tuple[float, float], decays: tuple[float, float]
) -> None:
    numbers = store()
    ours = PackedAdamW(numbers)
    alone = [row(state).requires_grad_() for state in numbers.read(numbers.theta).values()]
    theirs = [torch.optim.AdamW([p], lr=rates[k], weight_decay=decays[k]) for k, p in enumerate(alone)]
    lr, decay = (
        torch.tensor(rates, dtype=torch.float64),
        torch.tensor(decays, dtype=torch.float64) if any(decays) else None,
    )
    for step in range(20):
        if step == 10:
            state = ours.state()
            ours = PackedAdamW(numbers)
            ours.load_state(state, step)
        numbers.grads.copy_(torch.rand(numbers.grads.shape, generator=ref.keyed(step), dtype=torch.float64) - 0.5)
        for k, (p, grads) in enumerate(zip(alone, numbers.read(numbers.grads).values(), strict=True)):
            p.grad = row(grads)
            theirs[k].step()
        ours.step(lr, decay)
    for p, state in zip(alone, numbers.read(numbers.theta).values(), strict=True):
        torch.testing.assert_close(row(state), p.detach(), rtol=1e-13, atol=1e-15)


def test_clipping_is_torchs_for_each_adapter() -> None:
    numbers = store()
    # Gradients of padding are zero.
    states = {
        name: {key: v + i for i, (key, v) in enumerate(s.items())} for name, s in numbers.read(numbers.theta).items()
    }
    for k, state in enumerate(states.values()):
        numbers.buckets[0].write(numbers.grads, k, state)
    alone = []
    for state, limit in zip(states.values(), (0.5, float("inf")), strict=True):
        p = torch.zeros_like(row(state)).requires_grad_()
        p.grad = row(state)
        torch.nn.utils.clip_grad_norm_([p], limit)
        alone.append(p.grad)
    clip_gradients(numbers, torch.tensor([0.5, torch.inf]).double())
    for state, grad in zip(numbers.read(numbers.grads).values(), alone, strict=True):
        torch.testing.assert_close(row(state), grad)


def test_forwards_are_put_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].forward = own = lambda x: x

    def fail() -> None:
        with replaced_forwards({"": model, "0": model[0]}, lambda name, forward: lambda x: x * 0):
            assert float(model(torch.ones(1))) == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model[0].forward is own
    assert "forward" not in model.__dict__
