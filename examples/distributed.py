"""LoRA under DistributedDataParallel: inject before wrapping; only A and B are trained and exchanged.

python examples/distributed.py                            # one process
torchrun --nproc-per-node 2 examples/distributed.py       # several
"""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rankwise import LoRAConfig, inject, save_adapter
from rankwise.lora import trainable_parameters


def main() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        alone = "RANK" not in os.environ
        place = {"init_method": f"file://{folder}/store", "rank": 0, "world_size": 1} if alone else {}
        dist.init_process_group("gloo", **place)
        try:
            return train(folder)
        finally:
            dist.destroy_process_group()


def train(folder: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    inject(model, LoRAConfig(r=4))
    wrapped = DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)

    torch.manual_seed(dist.get_rank())  # every process has its own data
    x, y = torch.randn(64, 16), torch.randn(64, 4)
    losses: list[float] = []
    for _ in range(50):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(wrapped(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    if dist.get_rank() == 0:
        save_adapter(model, f"{folder}/adapter")  # the model itself, not the wrapper
    return {"first": losses[0], "last": losses[-1]}


if __name__ == "__main__":
    print(main())
