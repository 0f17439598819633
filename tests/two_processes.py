"""Training on several processes (gloo), each a call of one of these functions; their results lie in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fresh
from rankwise.adapter_files import both_files, save_adapter
from rankwise.lora import LoRAConfig, inject, trainable_parameters
from rankwise.pack.member import Member
from rankwise.pack.optimisers import AdamW, Muon, Optimiser
from rankwise.pack.resolved import AdapterState
from rankwise.pack.step.processes import Processes
from rankwise.train.data.feed import Feed
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training

ROWS, STEPS = 8, 3


class Block(nn.Module):
    """Two linear layers, and numbers that are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.tanh(self.up(x)))


def model_of(dtype: torch.dtype, **settings: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.Linear(16, 2)).to(dtype)
    if settings:
        inject(model, LoRAConfig(**settings))
    return model


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 16, generator=generator).to(dtype), torch.randn(ROWS, 2, generator=generator).to(dtype)


def share(tensor: Tensor, rank: int, world: int) -> Tensor:
    return tensor[rank * ROWS // world : (rank + 1) * ROWS // world]


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Take steps; at the first one every adapted layer must get a gradient."""
    trained = trainable_parameters(model)
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(STEPS):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        if step == 0:
            assert all(p.grad is not None for p in trained)
        optimiser.step()


def in_group(rank: int, world: int, folder: str, work: Callable[[int, int, Path], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    try:
        work(rank, world, Path(folder))
    finally:
        dist.destroy_process_group()


def run(work: Callable[[int, int, Path], None], folder: Path, world: int = 2) -> None:
    """Call a function in so many processes; each must end without an error."""
    with fresh.start(in_group, 0, world, str(folder), work) as first:
        others = [fresh.start(in_group, rank, world, str(folder), work) for rank in range(1, world)]
        running = [one.__enter__() for one in others]
        try:
            for one in [first, *running]:
                ended = one.end()
                assert ended.returncode == 0, ended.stderr
        finally:
            for one in others:
                one.__exit__(None, None, None)


def note_writes(folder: Path, rank: int) -> None:
    real = both_files._replace_files

    def noted(target: Path, *arguments: Any) -> None:
        with (folder / "writes").open("a") as file:
            file.write(f"{rank} {target.name}\n")
        real(target, *arguments)

    both_files._replace_files = noted


SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "target_modules": ["up", "down"]},
    "dora": {"r": 4, "variant": "dora", "target_modules": ["up", "down"]},
    "head": {"r": 4, "target_modules": ["up"], "modules_to_save": ["2"]},
}


def ddp(rank: int, world: int, folder: Path) -> None:
    """Train under DistributedDataParallel, and save from the wrapper."""
    for name, settings in SETTINGS.items():
        model = model_of(torch.float64, **settings)
        wrapped = DistributedDataParallel(model)
        train(wrapped, *(share(one, rank, world) for one in batch(torch.float64)))
        if rank == 0:
            save_adapter(wrapped, folder / name)


def fsdp2(rank: int, world: int, folder: Path) -> None:
    """Train with everything sharded, and save from all processes."""
    note_writes(folder, rank)
    mesh = init_device_mesh("cpu", (world,))
    for name, settings in SETTINGS.items():
        model = model_of(torch.float32, **settings)
        for block in (model[0], model[1]):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        _check_half(model, world)
        train(model, *(share(one, rank, world) for one in batch(torch.float32)))
        _keep_outputs(model, folder / f"{name}-{rank}.pt")
        assert (save_adapter(model, folder / name) / "adapter_model.safetensors").exists()


def fsdp2_replicated(rank: int, world: int, folder: Path) -> None:
    """Shard the base alone: A and B are on every process, and their gradients are averaged at once."""
    note_writes(folder, rank)
    mesh = init_device_mesh("cpu", (world,))
    for name in ("lora", "dora"):
        model = model_of(torch.float32, **SETTINGS[name])
        trained = set(trainable_parameters(model))
        for block in (model[0], model[1]):
            fully_shard(block, mesh=mesh, ignored_params=trained)
        fully_shard(model, mesh=mesh, ignored_params=trained)
        _check_half(model, world)
        x, y = (share(one, rank, world) for one in batch(torch.float32))
        optimiser = torch.optim.AdamW(trained_in_order := trainable_parameters(model), lr=1e-2)
        for _ in range(STEPS):
            optimiser.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            gradients = [p.grad for p in trained_in_order if p.grad is not None]
            assert len(gradients) == len(trained_in_order)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, mean in zip(gradients, flat.div(world).split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
            optimiser.step()
        _keep_outputs(model, folder / f"{name}-{rank}.pt")
        save_adapter(model, folder / name)


def _keep_outputs(model: nn.Module, path: Path) -> None:
    with torch.no_grad():
        torch.save(model(batch(torch.float32)[0]), path)


def _check_half(model: nn.Module, world: int) -> None:
    """The base's bytes on this process are its share."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    here = sum(p.to_local().nbytes for p in frozen)  # pyright: ignore
    whole = sum(p.numel() * p.element_size() for p in frozen)
    assert here <= whole / world * 1.02, (here, whole)


class Noisy(nn.Module):
    """Layers, dropout of its own, and a head that is trained whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.side, self.head = (
            nn.Linear(16, 24),
            nn.Dropout(0.2),
            nn.Linear(24, 24),
            nn.Linear(24, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.tanh(self.body(x)))
        return self.head(hidden + torch.tanh(self.side(hidden)))


def pack_of(processes: Processes | None, rows_a_pass: int | None, optimiser: Optimiser) -> dict[str, AdapterState]:
    """Train three members of a pack for two epochs of batches of 7 rows, and return what they have at the end."""
    torch.manual_seed(0)
    model = Noisy().double()
    x = torch.randn(40, 16, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    training = Training(lr=1e-2, epochs=2, batch_size=7, weights="last", clip=0.5, weight_decay=0.01)

    def member(name: str, seed: int, **settings: Any) -> Member:
        lora = LoRAConfig(target_modules=("body", "side"), seed=seed, dropout=0.1, **settings)
        return Member(name=name, lora=lora, seed=seed, modules_to_save=("head",), optimiser=optimiser)

    members = [member("a", 0, r=2), member("b", 1, r=3), member("c", 1, r=2, variant="dora")]
    rows = nn.functional.cross_entropy
    pack = PackTraining(
        model,
        [(one, training) for one in members],
        (x, y),
        (x[:9], y[:9]),
        lambda outputs, batch: rows(outputs, batch[1], reduction="none"),
        lambda outputs, batch: (outputs.argmax(-1) == batch[1]).double(),
        feed=Feed(processes=processes, rows_a_pass=rows_a_pass),
    )
    while not pack.done:
        if (epoch := pack.advance()) is not None and epoch.ended:
            return {one.name: one.state for one in epoch.ended}
    raise AssertionError("no run ended")


def packs(rank: int, world: int, folder: Path) -> None:
    """Train packs together; every process keeps what it has."""
    for name, (rows_a_pass, optimiser) in PACKS.items():
        torch.save(pack_of(Processes(rank, world), rows_a_pass, optimiser), folder / f"{name}-{rank}.pt")


PACKS: dict[str, tuple[int | None, Optimiser]] = {
    "whole": (None, AdamW()),
    "parts": (2, AdamW()),
    "muon": (None, Muon()),
}
