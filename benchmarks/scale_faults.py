"""Workers, machines and drivers that end in the middle of a sweep on Ray: its results are those of an undisturbed run.

    RAY_worker_niceness=0 python benchmarks/scale_faults.py [--worker 10] [--node 10] [--driver 5] [--stop 4] [--seed 0]

A local Ray cluster has a head without CPUs and two nodes with one each. A sweep of 22 tiny runs in 2 packs with two
rungs (6 units, grid plan) trains on it; every step sleeps, so that it takes seconds and hardly any CPU. It runs once in
one process, undisturbed. Then, each at a random one of the driver's events:

- worker: a worker gets SIGKILL.
- node: one of the two nodes is taken away, with its worker; a new one joins after 2 seconds.
- driver: the driver gets SIGKILL, and is resumed, in turns on Ray and in one process.
- stop: the driver gets SIGTERM or SIGINT, ends with what it has, and is resumed, likewise.
- begun: a run in one process gets SIGKILL, and is resumed on Ray.

Every result is compared with the undisturbed one: `results.json` without times, curves, predictions and adapters.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankwise
from rankwise.train.checkpoints import CheckpointInterval

SLEEPS = 0.01
"""Seconds that each step sleeps."""

KINDS = ("worker", "node", "driver", "stop", "begun")


def drive(out: Path, address: str | None) -> None:
    """Run or resume the sweep; prints a line for each event."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(240, 6, generator=torch.Generator().manual_seed(0))

    def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        if outputs.requires_grad:
            time.sleep(SLEEPS)
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def accuracy(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs.argmax(-1) == batch[1]).float()

    class Lines:
        def on_event(self, event: object) -> None:
            print("event", type(event).__name__, getattr(event, "text", ""), flush=True)

    rankwise.sweep(
        model,
        [1, 2, 4],
        train=(x, (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)),
        loss=loss,
        metric=accuracy,
        metric_name="accuracy",
        lrs=[1e-3, 3e-3, 1e-2],
        baseline=[1e-3, 1e-2],
        training=rankwise.Training(epochs=8, batch_size=16),
        seeds=2,
        rungs=[2, 5],
        plan="grid",
        out=out,
        resume=True,
        every=CheckpointInterval(seconds=0.3),
        progress="quiet",
        observers=[Lines()],
        workers=None if address is None else rankwise.Ray(address=address, cpus_per_worker=1),
    )


def started(out: Path, address: str | None) -> subprocess.Popen[str]:
    """Start a driver, in a process group of its own."""
    command = [sys.executable, __file__, "--drive", str(out), *([] if address is None else ["--address", address])]
    errors = (out.parent / f"{out.name}.log").open("a")
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
        # A shell makes its jobs in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(out: Path, address: str | None) -> None:
    """Run a driver to its end."""
    driver = started(out, address)
    driver.communicate()
    if driver.returncode:
        raise RuntimeError(f"A driver ended with {driver.returncode}; see {out}.log.")


def events_of(driver: subprocess.Popen[str]) -> Iterator[str]:
    """The events of a driver, one by one."""
    assert driver.stdout is not None
    return (line.strip() for line in driver.stdout if line.startswith("event"))


def contents(out: Path) -> dict[str, Any]:
    """What a run directory holds, less seconds, dates and the machine."""
    results = json.loads((out / "results.json").read_text().replace(str(out), "RUN"))  # in a command that goes on
    for key in ("seconds", "started", "command", "versions", "device"):
        del results[key]
    for run in results["runs"]:
        del run["seconds"]
    arrays = np.load(out / "predictions.npz")
    files = [out / "curves.csv", *(path for path in out.glob("adapters/**/*") if path.is_file())]
    return {
        "results.json": results,
        **{name: arrays[name].tobytes() for name in arrays},
        **{str(path.relative_to(out)): path.read_bytes() for path in files},
    }


class Trials:
    """Sweeps that are disturbed.

    Args:
        out: Where their run directories lie.
        events: How many events an undisturbed run on Ray has.
        cluster: The cluster, of Ray's own tests.
        draw: Draws moments.
    """

    def __init__(self, out: Path, events: int, cluster: Any, draw: random.Random) -> None:
        self.out, self.events, self.cluster, self.draw = out, events, cluster, draw

    def disturbed(self, out: Path, address: str | None, disturb: Callable[[subprocess.Popen[str]], object]) -> str:
        """Run a driver and disturb it at a random event; return which one of how many."""
        nth = self.draw.randint(1, self.events)
        driver, heard, done = started(out, address), 0, False
        for _ in events_of(driver):
            heard += 1
            if heard >= nth and not done:
                done = disturb(driver) is not False
        driver.wait()
        return f"at event {nth} of {heard}" if done else "(not disturbed)"

    def worker(self, out: Path, i: int) -> str:
        def kill(driver: object) -> bool:
            ours = psutil.Process().children(recursive=True)
            actors = [p for p in ours if p.is_running() and p.name().startswith("ray::UnitActor")]
            if actors:
                os.kill(self.draw.choice(actors).pid, signal.SIGKILL)
            return bool(actors)

        return self.disturbed(out, self.cluster.address, kill)

    def node(self, out: Path, i: int) -> str:
        def take_away(driver: object) -> None:
            self.cluster.remove_node(self.draw.choice(list(self.cluster.worker_nodes)), allow_graceful=False)
            time.sleep(2)
            self.cluster.add_node(num_cpus=1)

        return self.disturbed(out, self.cluster.address, take_away)

    def driver(self, out: Path, i: int) -> str:
        told = self.disturbed(out, self.cluster.address, lambda driver: os.kill(driver.pid, signal.SIGKILL))
        finished(out, self.cluster.address if i % 2 else None)
        return f"{told}, resumed {'on Ray' if i % 2 else 'in one process'}"

    def stop(self, out: Path, i: int) -> str:
        number = signal.SIGINT if i % 2 else signal.SIGTERM
        # A terminal's Ctrl-C reaches the whole process group.
        told = self.disturbed(out, self.cluster.address, lambda driver: os.killpg(driver.pid, number))
        finished(out, None if i % 2 else self.cluster.address)
        return f"{told}, {number.name}, resumed {'in one process' if i % 2 else 'on Ray'}"

    def begun(self, out: Path, i: int) -> str:
        told = self.disturbed(out, None, lambda driver: os.kill(driver.pid, signal.SIGKILL))
        finished(out, self.cluster.address)
        return f"{told}, resumed on Ray"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, n in zip(KINDS, (10, 10, 5, 4, 2), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=n)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/scale-faults"))
    parser.add_argument("--drive", type=Path)
    parser.add_argument("--address")
    given = parser.parse_args()
    if given.drive:
        drive(given.drive, given.address)
        return
    from ray.cluster_utils import Cluster

    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    finished(given.out / "undisturbed", None)
    wanted = contents(given.out / "undisturbed")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    print("undisturbed on Ray:", end=" ", flush=True)
    first = started(given.out / "on-ray", cluster.address)
    events = sum(1 for _ in events_of(first))
    first.wait()
    print("equal" if contents(given.out / "on-ray") == wanted else "DIFFERS", f"({events} events)", flush=True)
    trials = Trials(given.out, events, cluster, random.Random(given.seed))
    for kind in KINDS:
        right = 0
        for i in range(n := getattr(given, kind)):
            out, clock = given.out / f"{kind}-{i}", time.monotonic()
            try:
                told = getattr(trials, kind)(out, i)
                equal = contents(out) == wanted
            except (OSError, RuntimeError) as error:
                told, equal = str(error), False
            right += equal
            print(
                f"{kind} {i}: {'equal' if equal else 'DIFFERS'}, {told}, {time.monotonic() - clock:.0f} s", flush=True
            )
        print(f"{kind}: {right} of {n} equal the undisturbed run", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
