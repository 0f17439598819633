"""Each initialisation has the property of its paper."""

import pytest
import torch
from torch import Tensor, nn

from rankwise.lora import LoRAConfig, adapter_tensors, inject
from rankwise.lora.inits import Decompositions, initial_adapter
from rankwise.lora.inits.loftq import remember_error

EXACT = {"rtol": 0, "atol": 1e-10}
W = torch.randn(9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def start(init: str, r: int, scale: float = 2.0, **given) -> tuple[Tensor, Tensor]:
    sizes = {"d_in": W.shape[1], "d_out": W.shape[0]}
    return initial_adapter(
        init, seed=0, module="m", r=r, scale=scale, weight=Decompositions(lambda: W), **sizes, **given
    )


def best(matrix: Tensor, r: int) -> Tensor:
    """The best approximation of rank r (Eckart and Young)."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


@pytest.mark.parametrize("r", [1, 4, 9, 11])
def test_pissa_is_the_best_approximation_of_the_weight(r):
    A, B = start("pissa", r)
    torch.testing.assert_close(2.0 * B @ A, best(W, r), **EXACT)
    # A and B share the singular values evenly.
    torch.testing.assert_close(torch.linalg.svdvals(A[:9]), torch.linalg.svdvals(B[:, :9]), **EXACT)


def test_olora_has_orthonormal_columns_and_is_a_part_of_the_weight():
    A, B = start("olora", 4)
    torch.testing.assert_close(B.mT @ B, torch.eye(4, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(B @ A, B @ B.mT @ W, **EXACT)


def test_orthogonal_starts_at_the_base_with_neither_zero():
    A, B = start("orthogonal", 6)
    assert float((B @ A).abs().max()) < 1e-12
    assert min(float(A.norm()), float(B.norm())) > 0.1


def test_eva_holds_the_most_variance_of_the_inputs():
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.linspace(
        0.1, 3, 12
    )
    x = x + 5.0  # a mean is no variance
    model = nn.Sequential(nn.Linear(12, 9)).double()
    inject(model, LoRAConfig(r=3, init="eva"), init_data=[x[:10], x[10:]])
    A, B = adapter_tensors(model)["0"]
    held = (x @ A.detach().mT).var(0, correction=0)
    expected = torch.linalg.svdvals(x - x.mean(0))[:3] ** 2 / 40
    torch.testing.assert_close(held, expected, **EXACT)
    torch.testing.assert_close((A @ A.mT).detach(), torch.eye(3, dtype=torch.float64), **EXACT)
    assert not B.any()


def test_eva_leaves_padding_out():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 4)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.fc(x)

    x, mask = torch.randn(6, 3, 5), torch.ones(6, 3)
    mask[:, 2], padded = 0, x.clone()
    padded[:, 2] = 100.0
    found = []
    for values in (x, padded):
        model = Reader()
        inject(model, LoRAConfig(r=2, init="eva"), init_data=[{"x": values, "attention_mask": mask}])
        found.append(adapter_tensors(model)["fc"][0])
    assert torch.equal(*found)


def test_loftq_is_the_best_correction_of_a_rounded_weight():
    layer, rounded = nn.Linear(12, 9), W.float().round()
    remember_error(layer, W.float(), rounded, rank=5)
    A, B = start("loftq", 3, layer=layer)
    torch.testing.assert_close(2.0 * B @ A, best(W.float() - rounded, 3), rtol=0, atol=1e-5)
    with pytest.raises(Exception, match="stored up to rank 5, and r is 7"):
        start("loftq", 7, layer=layer)


def test_the_first_step_of_lora_ga_is_the_best_approximation_of_the_gradient():
    G = torch.randn(9, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    A, B = start("lora-ga", 3, data=Decompositions(lambda: G))
    # Gradients of A and B are s B^T G and s G A^T; the update of s B A to first order:
    step = G @ A.mT @ A + B @ B.mT @ G
    torch.testing.assert_close(step / (9**0.5 / 16), best(G, 6), **EXACT)


@pytest.mark.parametrize("init", ["eva", "lora-ga"])
def test_data_are_asked_for(init):
    with pytest.raises(Exception, match="starts from training data, and there are none"):
        inject(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(r=2, init=init))


def test_lora_ga_takes_the_models_own_loss_or_asks_for_one():
    with pytest.raises(Exception, match="returns no loss; give"):
        inject(nn.Sequential(nn.Linear(4, 4)), LoRAConfig(r=2, init="lora-ga"), init_data=[torch.ones(2, 4)])


def test_other_layers_than_linear_ones_are_refused():
    model = nn.Sequential(nn.Conv1d(3, 4, 2))
    with pytest.raises(Exception, match='"0" can\'t start with init="pissa": it starts linear layers only'):
        inject(model, LoRAConfig(r=2, init="pissa", target_modules=["0"]))
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_a_weight_is_decomposed_once_for_all_ranks():
    calls = []
    owner = nn.Parameter(W.clone())

    def matrix() -> Tensor:
        calls.append(1)
        return owner.detach()

    weight = Decompositions(matrix, owner)
    large, small = weight.svd(5), weight.svd(2)
    assert len(calls) == 1
    assert torch.equal(large[0][:, :2], small[0])
    with torch.no_grad():
        owner.mul_(2.0)
    torch.testing.assert_close(weight.svd(2)[1], 2 * small[1], **EXACT)
