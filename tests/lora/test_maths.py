"""The equations against NumPy-like loops and autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.lora.maths import SCALINGS, lora_delta, lora_linear, lora_update, parameter_count

sizes = st.integers(1, 6)


def tensors(r, d_in, d_out, rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, d_in), (d_out, d_in), (r, d_in), (d_out, r)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@given(sizes, sizes, sizes)
def test_equation_3(r, d_in, d_out):
    x, W, A, B = tensors(r, d_in, d_out)
    expected = torch.stack([W @ row + 5.0 / r * B @ (A @ row) for row in x])
    torch.testing.assert_close(lora_linear(x, W, A, B, alpha=5.0), expected)


@given(sizes, sizes, sizes)
def test_update_is_delta_applied(r, d_in, d_out):
    x, _, A, B = tensors(r, d_in, d_out)
    torch.testing.assert_close(lora_update(x, A, B, 0.3), x @ lora_delta(A, B, 0.3).mT)


def test_delta_has_rank_r():
    _, _, A, B = tensors(3, 9, 8)
    assert torch.linalg.matrix_rank(lora_delta(A, B, 2.0)) == 3


def test_a_stack_is_its_members():
    members = [tensors(2, 5, 4, seed=seed) for seed in range(3)]
    x, A, B = (torch.stack([member[i] for member in members]) for i in (0, 2, 3))
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    mapped = torch.vmap(lora_update)(x, A, B, scale)
    for k, (x_k, _, A_k, B_k) in enumerate(members):
        torch.testing.assert_close(mapped[k], lora_update(x_k, A_k, B_k, float(scale[k])))
        torch.testing.assert_close(lora_delta(A, B, scale)[k], lora_delta(A_k, B_k, float(scale[k])))


def test_scalings():
    assert SCALINGS["alpha/r"](32.0, 8) == 4.0
    assert SCALINGS["alpha/sqrt(r)"](32.0, 16) == 8.0


@given(sizes, sizes, sizes)
def test_parameter_count_is_what_a_and_b_hold(r, d_in, d_out):
    _, _, A, B = tensors(r, d_in, d_out)
    assert parameter_count(r, d_in, d_out) == A.numel() + B.numel()


def test_rank_stabilised_update_keeps_its_size():
    """rsLoRA's claim: with alpha/sqrt(r) the update's size does not depend on r; with alpha/r it falls."""
    norms = {}
    for r in (4, 256):
        x, _, A, B = tensors(r, 64, 64, rows=64)
        for name, scaling in SCALINGS.items():
            norms[name, r] = float(lora_update(x, A, B, scaling(1.0, r)).norm())
    assert norms["alpha/sqrt(r)", 256] == pytest.approx(norms["alpha/sqrt(r)", 4], rel=0.3)
    assert norms["alpha/r", 256] == pytest.approx(norms["alpha/r", 4] * math.sqrt(4 / 256), rel=0.3)
