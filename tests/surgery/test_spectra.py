"""Truncations from thin factors against numpy's SVD of the dense product."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.surgery.spectra import leading_svd, rank_for_error, summed_norm, thin_svd, truncate

sizes = st.integers(1, 7)


def draw(r: int, d_in: int, d_out: int, stack: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * r + 10 * d_in + d_out)
    shapes = (stack, r, d_in), (stack, d_out, r)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return A, B


@given(sizes, sizes, sizes, sizes)
def test_truncation_is_that_of_the_dense_product(r: int, d_in: int, d_out: int, new: int) -> None:
    A, B = draw(r, d_in, d_out)
    U, S, Vt = np.linalg.svd((B @ A)[0].numpy(), full_matrices=False)
    expected = U[:, :new] * S[:new] @ Vt[:new]
    down, up = truncate(A, B, new)
    assert (down.shape, up.shape) == ((1, new, d_in), (1, d_out, new))
    np.testing.assert_allclose((up @ down)[0].numpy(), expected, rtol=0, atol=1e-10 * S.max())
    k = min(r, d_in, d_out)
    np.testing.assert_allclose(thin_svd(A, B)[1][0].numpy()[:k], S[:k], rtol=0, atol=1e-10 * S.max())


def test_both_factors_have_one_norm_and_unused_inputs_stay_at_zero() -> None:
    A, B = draw(3, 6, 5)
    A[..., :2] = 0
    B[:, 4] = 0
    down, up = truncate(A, B, 2)
    torch.testing.assert_close(down.norm(), up.norm())
    assert down[..., :2].count_nonzero() == up[:, 4].count_nonzero() == 0


def test_a_matrix_and_its_transpose_have_one_result_to_the_last_bit() -> None:
    A, B = draw(3, 6, 5)
    down, up = truncate(A, B, 2)
    other_down, other_up = truncate(B.mT, A.mT, 2)
    assert torch.equal(down, other_up.mT)
    assert torch.equal(up, other_down.mT)


@given(sizes, sizes)
def test_norm_of_a_sum(r: int, other: int) -> None:
    one, two = draw(r, 4, 6, stack=2), draw(other, 4, 6, stack=2)
    dense = 0.3 * one[1] @ one[0] - 1.7 * two[1] @ two[0]
    assert summed_norm([(0.3, *one), (-1.7, *two)]) == pytest.approx(float(dense.norm()), rel=1e-12)


def test_the_smallest_rank_that_is_near_enough() -> None:
    S = torch.tensor([4.0, 2.0, 1.0, 0.5])
    total = float(S.square().sum())
    for r in range(1, 5):
        left = (float(S[r:].square().sum()) / total) ** 0.5
        assert rank_for_error(S, left) == r
    assert rank_for_error(torch.stack([S, 2 * S]), 0.0) == 4
    assert rank_for_error(torch.zeros(3), 0.0) == 1


def test_the_leading_part_of_a_large_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 60, dtype=torch.float64, generator=generator)).Q for n in (90, 80))
    S = 0.7 ** torch.arange(60, dtype=torch.float64)
    W = U * S @ V.mT
    left, values, right = leading_svd(W, 4, dense_up_to=0)
    assert values.shape == (20,)
    torch.testing.assert_close(values[:4], S[:4], rtol=1e-12, atol=0)
    torch.testing.assert_close(left[:, :4] * values[:4] @ right[:4], U[:, :4] * S[:4] @ V[:, :4].mT, rtol=0, atol=1e-10)
