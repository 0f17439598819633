"""LoRA in a plain training loop: a network that knows the digits 0-4 learns 5-9 with 2% of its parameters.

python examples/plain_torch.py
"""

import copy
import tempfile

import torch
from torch import Tensor, nn

from rankwise import LoRAConfig, inject, load_adapter, merge, save_adapter
from rankwise.tasks.digits.digits import NEW, OLD, select_digits
from rankwise.tasks.digits.mnist import load_digits_data


def train(model: nn.Module, x: Tensor, y: Tensor, lr: float, epochs: int) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model.eval()(x).argmax(-1) == y).float().mean())


def main() -> dict[str, float]:
    torch.manual_seed(0)
    digits, cpu = load_digits_data("embedded"), torch.device("cpu")
    base = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    train(base, *select_digits(digits.train, OLD, cpu), lr=1e-3, epochs=3)

    model = copy.deepcopy(base)
    print(inject(model, LoRAConfig(r=4)))  # every linear layer; the base is frozen
    train(model, *select_digits(digits.train, NEW, cpu), lr=3e-3, epochs=3)

    test = select_digits(digits.validation, NEW, cpu)
    results = {"base": accuracy(base, *test), "adapted": accuracy(model, *test)}
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)  # PEFT's format
        load_adapter(base, folder)
    results["loaded"] = accuracy(base, *test)
    merge(base)  # W + delta: costs nothing more than the base; `unmerge` undoes it
    results["merged"] = accuracy(base, *test)
    return results


if __name__ == "__main__":
    print(main())
