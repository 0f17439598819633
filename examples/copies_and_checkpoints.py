"""Copies, pickles and gradient checkpointing: an adapted model stays an ordinary module.

python examples/copies_and_checkpoints.py
"""

import copy
import pickle

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwise import LoRAConfig, inject
from rankwise.lora import trainable_parameters


class Net(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant:
            x.requires_grad_()  # reentrant checkpoints give no gradient at all unless an input asks for one
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def gradients(model: Net, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x.clone()).square().mean().backward()
    return [p.grad.clone() for p in trainable_parameters(model) if p.grad is not None]


def main() -> dict[str, bool]:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(8, 16)
    inject(model, LoRAConfig(r=2, dropout=0.1, seed=1))
    for parameter in trainable_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    before = model(x)

    twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    results = {"copies agree": torch.equal(twin(x), before) and torch.equal(thawed(x), before)}
    for parameter in trainable_parameters(twin):
        nn.init.zeros_(parameter)
    results["copies are apart"] = torch.equal(model(x), before) and not torch.equal(twin(x), before)

    expected = gradients(model, x)
    for name, reentrant in (("without reentrance", False), ("with reentrance", True)):
        model.reentrant = reentrant
        results[name] = all(map(torch.equal, gradients(model, x), expected)) and len(expected) == 6
    return results


if __name__ == "__main__":
    print(main())
