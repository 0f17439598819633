"""A head that was trained alone is an adapter that peft reads: the base with that head, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.errors import AdapterError
from rankwise.lora.inject import eject
from rankwise.lora.merge import merge
from rankwise.pack.member import Member
from rankwise.sweeps.attaching import put_on
from rankwise.sweeps.problem import Run
from rankwise.train.settings import Training


def head_run(*head: str, method: Any = "head") -> Run:
    return Run(
        name=f"{method}-s0",
        configuration=method,
        label=method,
        method=method,
        member=Member(name=f"{method}-s0", modules_to_save=head),
        training=Training(lr=1e-3),
    )


def trained(model: nn.Module, *head: str) -> dict[str, Tensor]:
    """Other numbers for the head's parameters."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in model.named_parameters()
        if name.startswith(head)
    }


def convolutions() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return layers.eval()


class Tied(nn.Module):
    """Its only linear layers share their weight; the embedding is larger."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.second.weight = self.first.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.table(ids).mean(1))))


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)), "3"),
    "convolutions": (convolutions, "4"),
    "tied": (Tied, "head"),
}
INPUTS = {"linear": torch.randn(4, 5), "convolutions": torch.randn(4, 1, 8, 8), "tied": torch.arange(12).view(4, 3)}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name][0]()


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_base_with_that_head_in_rankwise_and_in_peft(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, x, head = made(name), INPUTS[name], CASES[name][1]
    state = trained(model, head)
    expected = made(name)
    expected.load_state_dict(state, strict=False)
    expected = expected(x)
    before = model(x)

    put_on(model, head_run(head), state, "default")
    assert torch.equal(model(x), expected)
    folder = save_adapter(model, tmp_path / "head")
    eject(model, "default")
    assert torch.equal(model(x), before)

    load_adapter(model, folder)
    assert torch.equal(model(x), expected)
    merge(model)
    assert torch.equal(model(x), expected)
    theirs = peft.PeftModel.from_pretrained(made(name), folder).eval()
    torch.testing.assert_close(theirs(x), expected)


def test_it_can_be_trained_on() -> None:
    model, x = made("linear"), INPUTS["linear"]
    put_on(model, head_run("3"), trained(model, "3"), "default")
    model(x).sum().backward()
    moved = [p for p in model.parameters() if p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0]
    assert {tuple(p.shape) for p in moved} == {(8, 1), (2, 8), (2,)}, "B, and the head; not A, as B is 0"


def test_full_fine_tuning_is_no_adapter() -> None:
    model = made("linear")
    with pytest.raises(AdapterError, match="trains all weights of the base"):
        put_on(model, head_run("0", "2", "3", method="full"), {}, "default")
