"""What a sweep on `--ray local` with two workers takes in memory, against the forecast of its plan.

    RAY_worker_niceness=0 python benchmarks/scale_memory.py digits [--out runs/scale-memory]
    RAY_worker_niceness=0 python benchmarks/scale_memory.py minilm --data .../banking77/train.csv

Sampled every half second from /proc while the command of `scale_equal.py` runs: of the driver and of each worker the
largest resident size (VmHWM) and the largest proportional one (PSS: what processes share counts in parts); of Ray's
object store the bytes of shared memory that were written to. Libraries alone are measured in a process that imports
what a worker does, and the same sweep in one process.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from scale_equal import command_of, emptied, task_parser

IMPORTS = "import torch, transformers, rankwise.experiment, rankwise.tasks.digits.run, rankwise.tasks.text.run, ray"
MB = 1e6


def figure(pid: int, file: str, key: str) -> int:
    """A figure in kB of a process, in bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def stored() -> int:
    """Bytes of Ray's object stores on this machine that were ever written to: blocks of their files in shared memory."""
    found = 0
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet":
            maps = Path(f"/proc/{process.pid}/map_files")
            try:
                files = {
                    os.stat(path).st_ino: os.stat(path) for path in maps.iterdir() if "plasma" in os.readlink(path)
                }
            except OSError:
                continue
            found += sum(stat.st_blocks * 512 for stat in files.values())
    return found


class Sampler(threading.Thread):
    """Samples a command's processes until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most, self.over = pid, dict[str, dict[str, int]](), threading.Event()
        self.store = 0

    def run(self) -> None:
        while not self.over.wait(0.5):
            try:
                children = psutil.Process(self.pid).children(recursive=True)
                workers = [c.pid for c in children if "".join(c.cmdline()).startswith("ray::UnitActor")]
            except psutil.Error:  # one has just ended
                continue
            for name, pid in [("driver", self.pid), *((f"worker {pid}", pid) for pid in workers)]:
                row = self.most.setdefault(name, {"VmHWM": 0, "Pss": 0})
                row["VmHWM"] = max(row["VmHWM"], figure(pid, "status", "VmHWM"))
                row["Pss"] = max(row["Pss"], figure(pid, "smaps_rollup", "Pss"))
            self.store = max(self.store, stored())


def sampled(command: list[str]) -> Sampler:
    """Run a command with one thread, and sample it."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    sampler = Sampler(process.pid)
    sampler.start()
    code = process.wait()
    sampler.over.set()
    sampler.join()
    if code:
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {code}.")
    return sampler


def main() -> None:
    given = task_parser(__doc__, Path("runs/scale-memory")).parse_args()
    work = emptied(given.out / given.task)
    libraries = sampled([sys.executable, "-c", f"{IMPORTS}; import time; time.sleep(2)"]).most["driver"]
    print(f"libraries alone: VmHWM {libraries['VmHWM'] / MB:.0f} MB, PSS {libraries['Pss'] / MB:.0f} MB", flush=True)
    base = [sys.executable, "-m", "rankwise", *command_of(given.task, given.data, work)]
    ray = ["--ray", "local", "--max-workers", "2", "--cpus-per-worker", "1"]
    for way, flags in (("Ray, 2 workers", ray), ("one process", [])):
        out, clock = work / way.split(",")[0].replace(" ", "-"), time.monotonic()
        found = sampled([*base, "--out", str(out), *flags])
        results: dict[str, Any] = json.loads((out / "results.json").read_text())
        forecast = max(run["peak_memory_bytes"] for run in results["runs"])
        told = f"{way}: {time.monotonic() - clock:.0f} s, forecast of base and largest pack {forecast / MB:.0f} MB"
        print(f"{told}, object store {found.store / 1e3:.0f} kB", flush=True)
        for name, row in found.most.items():
            print(f"    {name}: VmHWM {row['VmHWM'] / MB:.0f} MB, PSS {row['Pss'] / MB:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
