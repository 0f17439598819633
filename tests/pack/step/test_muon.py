"""Muon in packs: every matrix at its adapter's own rank, as by singular values and as torch's; the rest as AdamW."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pack.test_any_model import Case, alone, batches_of, made, together
from plain_loop import Plain
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.optimisers import Muon
from rankwise.pack.pack import Pack
from rankwise.pack.step.muon import COEFFICIENTS, STEPS, PackedMuon, orthogonalised
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training
from reference import update_difference
from small_models import KINDS, Kind, call
from small_sweep import accuracy, loss, same_when_gone_on_with, small_model, some_data


def by_singular_values(matrix: Tensor) -> Tensor:
    """The iteration as its polynomial a s + b s^3 + c s^5 on each singular value."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    S = S / S.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        S = a * S + b * S**3 + c * S**5
    return U @ torch.diag(S) @ Vh


class ReferenceMuon(torch.optim.Optimizer):
    """Momentum 0.95 after Nesterov, the polynomial, and the factor 0.2 sqrt(max(n, m)); torch's AdamW for the rest."""

    def __init__(self, tensors: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(tensors, {"lr": lr, "weight_decay": weight_decay})
        rest = [tensor for tensor in tensors if tensor.ndim != 2]
        self.rest = torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay) if rest else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if self.rest is not None:
            self.rest.step()
        (group,) = self.param_groups
        for p in (p for p in group["params"] if p.ndim == 2):
            v = self.state[p].get("v", torch.zeros_like(p))
            v = self.state[p]["v"] = 0.95 * v + 0.05 * p.grad
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * 0.2 * max(p.shape) ** 0.5 * by_singular_values(0.05 * p.grad + 0.95 * v))


@dataclass
class PlainMuon(Plain):
    def optimiser(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        return ReferenceMuon(tensors, self.lr, self.weight_decay)


def cases_of(kind: Kind) -> list[Case]:
    every, some, _ = kind.targets
    heads = [name for name in kind.modules_to_save if name != "norm"]

    def case(name: str, plain: Plain, whole: tuple[str, ...] = (), **lora: Any) -> Case:
        config = LoRAConfig(seed=plain.seed, dropout=plain.dropout, **lora)
        member = Member(name=name, seed=plain.seed, lora=config, modules_to_save=whole, optimiser=Muon())
        return Case(member, replace(plain, scale=config.scale()))

    # The first two share a bucket, so one is padded; the third trains matrices and biases in full.
    return [
        case("three", PlainMuon(0, 1e-3), r=3, target_modules=every),
        case("one", PlainMuon(0, 2e-3, seed=1, weight_decay=0.1), r=1, target_modules=every),
        case(
            "head",
            PlainMuon(0, 1e-3, dropout=0.2),
            kind.modules_to_save,
            r=2,
            target_modules=some,
            exclude_modules=heads,
        ),
    ]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_updates_are_those_of_singular_values(name: str) -> None:
    kind = KINDS[name]
    model, cases, batches = made(kind), cases_of(kind), batches_of(kind, 12)
    start = Pack(model, [case.member for case in cases], kind.loss, call=call).states()
    ours = together(model, kind, cases, batches)
    for case in cases:
        key = case.member.name
        theirs = alone(model, kind, case, start[key], batches[case.plain.seed])
        assert update_difference(ours[key], theirs, start[key]) <= 1e-8, key


@pytest.mark.parametrize("shape", [(1, 7), (3, 8), (8, 3), (2, 4, 6)])
def test_the_iteration_is_its_polynomial(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([by_singular_values(matrix) for matrix in matrices.view(-1, *shape[-2:])]).view(shape)
    torch.testing.assert_close(orthogonalised(matrices), expected, rtol=1e-9, atol=1e-9)
    padded = torch.nn.functional.pad(matrices, (0, 0, 0, 2))
    torch.testing.assert_close(orthogonalised(padded)[..., : shape[-2], :], expected, rtol=1e-9, atol=1e-9)
    assert not orthogonalised(padded)[..., shape[-2] :, :].any()


def test_a_step_is_torchs_but_for_its_bfloat16() -> None:
    """On random gradients, whose singular values are all large: bfloat16 would fill those of 0 with noise."""
    pack = Pack(small_model(), [Member(name="a", lora=LoRAConfig(r=2), optimiser=Muon())], loss)
    start, grads = pack.states()["a"], torch.Generator().manual_seed(0)
    theirs = {key: value.clone().requires_grad_() for key, value in start.items()}
    optimiser = torch.optim.Muon(theirs.values(), lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    mine = PackedMuon(pack.store)
    for _ in range(3):
        pack.store.grads.copy_(torch.randn(pack.store.grads.shape, generator=grads))
        mine.step(torch.tensor([0.1]), torch.tensor([0.01]))
        for key, gradient in pack.store.read(pack.store.grads)["a"].items():
            theirs[key].grad = gradient
        optimiser.step()
    assert update_difference(pack.states()["a"], {key: t.detach() for key, t in theirs.items()}, start) <= 0.02


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    settings = Training(lr=0.05, optimiser="muon", batch_size=8, epochs=4)
    runs = [(Member(name=f"r{r}", lora=LoRAConfig(r=r), optimiser=Muon()), settings) for r in (1, 4)]

    def training() -> PackTraining:
        return PackTraining(small_model(), runs, some_data(40, 0), some_data(30, 1), loss, accuracy)

    first = training()
    first.advance()
    state = first.state()
    assert {key.split("/")[2] for key in state.tensors if key.startswith("moments/")} == {"first", "second"}
    same_when_gone_on_with(training, state)


def test_what_trains_at_a_multiple_of_the_rate_decays_at_it_too() -> None:
    torch.manual_seed(0)
    member = Member(name="one", lora=LoRAConfig(r=2), lr_ratio=4.0, optimiser=Muon())
    pack = Pack(nn.Linear(6, 5).double(), [member], lambda outputs, batch: outputs.sum(1))
    pack.store.randomise()
    before = pack.states()["one"]
    pack.store.begin()
    for i, bucket in enumerate(pack.store.buckets):
        for key in bucket.shapes:
            pack.store.gradient(i, key).copy(torch.zeros(()))  # a gradient of zero: what is left is the decay
    pack.store.finish()
    pack.update(torch.tensor([0.01], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64), None)
    after = pack.states()["one"]
    torch.testing.assert_close(after[".A"], before[".A"] * (1 - 0.01 * 0.1), rtol=0, atol=1e-14)
    torch.testing.assert_close(after[".B"], before[".B"] * (1 - 4 * 0.01 * 0.1), rtol=0, atol=1e-14)
