"""Initialisations: bounds, B = 0, and one stream for (seed, module) whatever the rank."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.lora.inits import initial_adapter

BOUND = {"kaiming": lambda r, d_in: 1 / math.sqrt(d_in), "notebook": lambda r, d_in: 1 / math.sqrt(r)}
FACTOR_OF_ITS_OWN = {"kaiming": lambda r: 1.0, "gaussian": lambda r: 1 / r, "notebook": lambda r: 1 / math.sqrt(r)}


@given(
    st.sampled_from(sorted(FACTOR_OF_ITS_OWN)),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_lower_rank_is_a_prefix(init, r, more, d_in, d_out):
    low, _ = initial_adapter(init, seed=3, module="h.0", r=r, d_in=d_in, d_out=d_out)
    high, _ = initial_adapter(init, seed=3, module="h.0", r=r + more, d_in=d_in, d_out=d_out)
    ratio = FACTOR_OF_ITS_OWN[init](r) / FACTOR_OF_ITS_OWN[init](r + more)
    torch.testing.assert_close(low, high[:r] * ratio)


@given(st.sampled_from(sorted(FACTOR_OF_ITS_OWN)), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
def test_shapes_types_and_a_start_at_the_base(init, r, d_in, d_out):
    A, B = initial_adapter(init, seed=0, module="m", r=r, d_in=d_in, d_out=d_out)
    assert (A.shape, B.shape) == ((r, d_in), (d_out, r))
    assert (A.dtype, B.dtype) == (torch.float32, torch.float32)
    assert torch.isfinite(A).all()
    assert not B.any()


@pytest.mark.parametrize("init", sorted(BOUND))
def test_uniform_inits_fill_their_bounds(init):
    A, _ = initial_adapter(init, seed=0, module="m", r=64, d_in=100, d_out=1)
    bound = BOUND[init](64, 100)
    assert 0.99 * bound < float(A.abs().max()) <= bound


def test_kaiming_is_the_bound_of_torchs_own():
    A, _ = initial_adapter("kaiming", seed=0, module="m", r=64, d_in=100, d_out=1)
    peer = torch.nn.init.kaiming_uniform_(torch.empty(64, 100), a=math.sqrt(5))
    assert float(A.std()) == pytest.approx(float(peer.std()), rel=0.05)


def test_gaussian_is_normal_with_deviation_one_over_r():
    A, _ = initial_adapter("gaussian", seed=0, module="m", r=50, d_in=200, d_out=1)
    assert float(A.mean()) == pytest.approx(0.0, abs=0.001)
    assert float(A.std()) == pytest.approx(1 / 50, rel=0.05)


def test_seed_and_module_make_the_stream():
    def draw(seed, module):
        return initial_adapter("kaiming", seed=seed, module=module, r=2, d_in=4, d_out=4)[0]

    assert torch.equal(draw(0, "a"), draw(0, "a"))
    assert not torch.equal(draw(0, "a"), draw(1, "a"))
    assert not torch.equal(draw(0, "a"), draw(0, "b"))
