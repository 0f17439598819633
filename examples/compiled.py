"""LoRA under torch.compile: inject first, then compile. Adapters switch by flags and their values change in place, so a
compiled model notices both; new values need no new compilation.

    python examples/compiled.py
"""

import sys

import torch
from torch import nn

from rankwise import LoRAConfig, disabled, inject
from rankwise.lora import trainable_parameters


def main(backend: str = "inductor") -> dict[str, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    inject(model, LoRAConfig(r=4))
    x, y = torch.randn(64, 16), torch.randn(64, 4)
    model(x)  # The first forward looks whether every adapter is reached; its hooks are gone before compiling.
    compiled = torch.compile(model, backend=backend)

    optimiser = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    losses: list[float] = []
    for _ in range(50):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(compiled(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    with torch.no_grad():
        results = {"first": losses[0], "last": losses[-1], "difference": gap(compiled(x), model(x))}
        # The values of another adapter, copied into this one: still the same compiled code.
        with torch.compiler.set_stance("fail_on_recompile"):
            for parameter in trainable_parameters(model):
                parameter.copy_(torch.randn_like(parameter))
            results["after new values"] = gap(compiled(x), model(x))
        with disabled(model):
            results["disabled"] = gap(compiled(x), model(x))
    return results


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
