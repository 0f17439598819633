"""Similarity of subspaces and amplification, against their definitions."""

import numpy as np
import pytest
import torch

from rankwise.surgery.directions import amplification, random_similarity, similarity


def orthonormal(n: int, d: int, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, n, generator=draws, dtype=torch.float64)).Q.mT


def test_the_papers_definition() -> None:
    one, other = orthonormal(4, 20, 0), orthonormal(7, 20, 1)
    found = similarity(one, other)
    for i in range(1, 5):
        for j in range(1, 8):
            by_hand = np.linalg.norm(one[:i].numpy() @ other[:j].numpy().T, "fro") ** 2 / min(i, j)
            assert found[i - 1, j - 1] == pytest.approx(by_hand, abs=1e-12)
    assert torch.allclose(similarity(one, one).diagonal(), torch.ones(4, dtype=torch.float64))


def test_random_directions_agree_as_much_as_said() -> None:
    drawn = [similarity(orthonormal(3, 30, 2 * k), orthonormal(6, 30, 2 * k + 1))[-1, -1] for k in range(300)]
    assert float(torch.stack(drawn).mean()) == pytest.approx(random_similarity(3, 6, 30), abs=0.02)


def test_amplification_of_what_the_base_has() -> None:
    W = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    found = amplification(U[:, :2], 5 * S[:2], Vt[:2], W)
    assert found.factor == pytest.approx(5.0)
    assert found.base == pytest.approx(found.leading)
