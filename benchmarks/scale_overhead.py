"""What Ray costs a sweep: wall time against the work of its units, and memory against the forecast.

    RAY_worker_niceness=0 python benchmarks/scale_overhead.py [--units 14] [--seconds 10] [--workers 2] [--layers 12]

A sweep of as many packs as there are units (each has its own batch size, so that none share one) trains on `--ray
local` with one CPU a worker. A step computes a little and sleeps, so that a unit takes about `--seconds` even where
other programs use the CPUs.

- overhead: seconds from the start of the first unit to the end of the last, over the ideal: the sum of the units'
  seconds as their workers measured them, making the experiment included, divided by the workers. Goal: 1.15.
- memory: the largest resident size of driver and workers less that of a worker before it has the base, against the
  forecast of the plan (the base and the largest pack); the base's bytes; bytes in Ray's object store at their most.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import rankwise
from rankwise.sweeps.run.units import on_ray
from rankwise.sweeps.run.units.actor import UnitActor
from rankwise.sweeps.storage.owned import UNFINISHED
from rankwise.train.events import Event

WIDTH, ROWS, EPOCHS = 512, 256, 4


class TimedActor(UnitActor):
    """A worker that writes down when it trained what, and its memory."""

    def run(self, number: int, every: Any) -> Generator[Event]:
        before, start = _peak(), time.time()
        yield from super().run(number, every)
        row = {"unit": number, "worker": os.getpid(), "start": start, "end": time.time()}
        with (self._units.folder.parent.parent.parent / "units.jsonl").open("a") as file:
            print(json.dumps({**row, "before": before, "peak": _peak()}), file=file)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Store:
    """Notes the most memory of Ray's object store that was written to: what its server shares, at events of the driver."""

    def __init__(self) -> None:
        self.most, self.looked = 0, 0.0

    def on_event(self, event: object) -> None:
        if time.monotonic() > self.looked + 2:
            self.looked = time.monotonic()
            servers = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
            self.most = max([self.most, *(p.memory_info().shared for p in servers)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/scale-overhead"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(given.layers)))
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    batches = [16 + i for i in range(given.units)]
    naps = {size: given.seconds / EPOCHS / -(-ROWS // size) for size in batches}

    def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        if outputs.requires_grad:
            size = min(naps, key=lambda size: abs(size - len(outputs)))
            time.sleep(naps[size])
        return (outputs - batch[1]).square().mean(-1)

    on_ray.UnitActor = TimedActor
    store, clock = Store(), time.time()
    rankwise.sweep(
        model,
        {
            f"batch{size}": (rankwise.LoRAConfig(r=4), rankwise.Training(epochs=EPOCHS, batch_size=size))
            for size in batches
        },
        train=(x, x.roll(1, 1)),
        validation=(x[:32], x[:32].roll(1, 1)),
        test=(x[32:64], x[32:64].roll(1, 1)),
        loss=loss,
        lrs=1e-3,
        baseline=False,
        seeds=1,
        plan="grid",
        out=given.out / "run",
        progress="quiet",
        observers=[store],
        workers=rankwise.Ray(address="local", max_workers=given.workers, cpus_per_worker=1),
    )
    whole = time.time() - clock
    rows = [json.loads(line) for line in (given.out / "units.jsonl").read_text().splitlines()]
    work = [row["end"] - row["start"] for row in rows]
    wall, ideal = max(r["end"] for r in rows) - min(r["start"] for r in rows), sum(work) / given.workers
    base = sum(p.numel() * p.element_size() for p in model.parameters())
    results = json.loads((given.out / "run" / "results.json").read_text())
    forecast = max(run["peak_memory_bytes"] for run in results["runs"])
    grown = [row["peak"] - min(r["before"] for r in rows) for row in rows]
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {given.workers} workers, {len(rows)} units")
    print(f"units: {min(work):.1f} to {max(work):.1f} s, sum {sum(work):.1f} s")
    print(f"wall {wall:.1f} s, ideal {ideal:.1f} s: {wall / ideal:.3f} (goal 1.15); the whole command {whole:.1f} s")
    print(
        f"MB: base {base / 1e6:.0f}, forecast with the largest pack {forecast / 1e6:.0f}, a worker's growth {max(grown) / 1e6:.0f}"
    )
    print(
        f"MB: driver's peak {_peak() / 1e6:.0f}, workers' {max(r['peak'] for r in rows) / 1e6:.0f}; object store's server {store.most / 1e6:.0f}, its code included"
    )
    assert not (given.out / "run" / UNFINISHED).exists()


if __name__ == "__main__":
    main()
