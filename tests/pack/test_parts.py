"""The small parts of a pack: groups, buckets, forwards, the optimiser."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reference as ref
from rankwise.lora.config import LoRAConfig
from rankwise.pack.adamw import PackedAdamW, clip_gradients, gradient_norms
from rankwise.pack.bucket import Bucket, bucket_rank, resolve
from rankwise.pack.forwards import replaced_forwards
from rankwise.pack.groups import Groups
from rankwise.pack.member import Member
from rankwise.pack.noise import uniform

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
    told = [batch for batch, first, last in runs for _ in range(first, last)]
    assert told == batch_of[start:stop]
    assert [first for _, first, _ in runs] == [0, *[last for _, _, last in runs[:-1]]]


def bucket(dtype: torch.dtype = torch.float64) -> Bucket:
    model = nn.Sequential(nn.Linear(3, 2))
    members = [resolve(model, Member(name=f"r{r}", lora=LoRAConfig(r=r))) for r in (1, 2)]
    return Bucket(members, [m.start(model) for m in members], CPU, dtype)


def test_views_share_the_rows_memory_and_states_are_cut_to_the_rank() -> None:
    stack = bucket()
    A, B, scale = stack.low_rank("0")
    assert (A.shape, B.shape, scale.flatten().tolist()) == ((2, 2, 3), (2, 2, 2), [32.0, 16.0])
    stack.rows[0] += 1
    state = stack.state(0)
    assert {key: tuple(value.shape) for key, value in state.items()} == {"0.A": (1, 3), "0.B": (2, 1)}
    assert torch.equal(state["0.A"], A.detach()[0, :1])


@pytest.mark.parametrize("r", [1, 16, 17, 63, 64, 65, 1000])
def test_a_bucket_holds_its_rank(r: int) -> None:
    assert bucket_rank(r) >= r
    assert bucket_rank(bucket_rank(r)) == bucket_rank(r)


def test_adamw_is_torchs_for_each_row_with_its_own_rate_and_decay() -> None:
    stack = bucket()
    rates, decay = torch.tensor([1e-2, 3e-3]).double(), torch.tensor([0.1, 0.0]).double()
    alone = [row.clone().requires_grad_() for row in stack.rows]
    theirs = [torch.optim.AdamW([p], lr=float(rates[k]), weight_decay=float(decay[k])) for k, p in enumerate(alone)]
    ours = PackedAdamW([stack])
    for step in range(20):
        stack.grads.copy_(torch.rand(stack.rows.shape, generator=ref.keyed(step), dtype=torch.float64) - 0.5)
        for k, p in enumerate(alone):
            p.grad = stack.grads[k].clone()
            theirs[k].step()
        ours.step(rates, decay)
    torch.testing.assert_close(stack.rows, torch.stack([p.detach() for p in alone]), rtol=1e-13, atol=1e-15)


def test_clipping_is_torchs_for_each_row() -> None:
    stack = bucket()
    stack.grads.copy_(torch.linspace(-3, 3, stack.grads.numel()).view_as(stack.grads))
    alone = []
    for k, limit in enumerate((0.5, float("inf"))):
        p = torch.zeros_like(stack.rows[k]).requires_grad_()
        p.grad = stack.grads[k].clone()
        torch.nn.utils.clip_grad_norm_([p], limit)
        alone.append(p.grad)
    before = gradient_norms([stack])
    assert torch.equal(clip_gradients([stack], torch.tensor([0.5, torch.inf]).double()), before)
    torch.testing.assert_close(stack.grads, torch.stack(alone))


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


def test_noise_of_a_shorter_batch_is_the_first_rows_of_a_longer_one() -> None:
    longer, shorter = (uniform(0, "fc", 0, 3, 0, (rows, 5)) for rows in (9, 4))
    assert torch.equal(longer[:4], shorter)
    others = [uniform(1, "fc", 0, 3, 0, (4, 5)), uniform(0, "fc", 1, 3, 0, (4, 5)), uniform(0, "fc", 0, 4, 0, (4, 5))]
    assert not any(torch.equal(shorter, other) for other in others)
