"""A cut adapter is the best approximation of its rank, in every kind of layer."""

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.resolved import AdapterState, resolve
from rankwise.sweeps.squeezing.cutting import cut_state


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.up.mean(0).mT


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(9, 12)), {}),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3)), {"target_modules": ["0"]}),
    "grouped": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3, groups=2)), {"target_modules": ["0"]}),
    "embedding": (lambda: nn.Sequential(nn.Embedding(10, 8)), {"target_modules": ["0"]}),
    "experts": (lambda: nn.Sequential(Experts()), {"target_modules": ["0.up"]}),
    "slices": (lambda: nn.Sequential(nn.Linear(9, 12)), {"slices": {"0": ["0/3", "2/3"]}}),
    "rank-stabilised": (lambda: nn.Sequential(nn.Linear(9, 12)), {"scaling": "alpha/sqrt(r)"}),
}


def random_state(model: nn.Module, member: Member) -> AdapterState:
    draws = torch.Generator().manual_seed(1)
    shapes = resolve(model, member).shapes
    return {key: torch.randn(shape, generator=draws, dtype=torch.float64) for key, shape in shapes.items()}


def matrices(model: nn.Module, member: Member, state: AdapterState) -> np.ndarray:
    """The update as the layer's own weight has it, as matrices: one for each expert or slice."""
    (t,) = resolve(model, member).targets
    delta = t.scale * t.layer_type.delta(t.module, state[f"{t.name}.A"], state[f"{t.name}.B"])
    if t.layer_type.slices:
        return np.stack([delta[start:stop].numpy() for start, stop in t.layer_type.slices])
    if t.layer_type.name.startswith("Conv"):
        delta = delta.flatten(1)
    return (delta if delta.ndim == 3 else delta[None]).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_the_svd_of_the_dense_update(name: str) -> None:
    make, given = MODELS[name]
    model = make().double()
    trained, *smaller = (Member(name=f"r{r}", lora=LoRAConfig(r=r, alpha=8.0, **given)) for r in (4, 4, 2, 1))
    state = random_state(model, trained)
    U, S, Vt = np.linalg.svd(matrices(model, trained, state), full_matrices=False)
    for member, cut in zip(smaller, cut_state(model, trained, state, smaller) or [], strict=True):
        r = member.lora.r if member.lora else 0
        assert {key: tuple(tensor.shape) for key, tensor in cut.items()} == resolve(model, member).shapes
        expected = (U[..., :r] * S[..., None, :r]) @ Vt[..., :r, :]
        np.testing.assert_allclose(matrices(model, member, cut), expected, rtol=0, atol=1e-10)


def test_what_is_trained_in_full_is_the_trained_adapters() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    trained, smaller = (
        Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=["0"]), modules_to_save=("1",)) for r in (3, 1)
    )
    state = {key: value.float() for key, value in random_state(model, trained).items()}
    (cut,) = cut_state(model, trained, state, [smaller]) or []
    assert torch.equal(cut["1.weight"], state["1.weight"])
    assert torch.equal(cut["1.bias"], state["1.bias"])
    assert cut["0.A"].dtype == torch.float32
