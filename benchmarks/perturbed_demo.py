"""Whether the demo's answer depends on rounding: the same sweep on other threads, in other packs, from other last bits.

    python benchmarks/perturbed_demo.py [--runs 20] [--tolerance 4%] [--confidence 0.99]

Each run is `rankwise digits` in its own process: with one or two threads, its packs cut into one to three parts,
and the last bit of some of the initial A moved up or down (another tenth of the numbers in each run). All of these change
how sums round, and nothing else. The answer of each run and its probability are printed; the exit code is 1 where the
verdict or the rank differs between runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PERTURBED = """
import sys
import torch
parts, key, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
from rankwise.lora.inits import INITS, from_uniform
from rankwise.lora.inits.kaiming import kaiming
from rankwise.sweeps.plan import plan

draws, cut = torch.Generator().manual_seed(key), plan.cut_to_fit

def jittered(uniform, fan):
    A, B = kaiming(uniform, fan)
    chosen = torch.rand(A.shape, generator=draws) < 0.1
    return torch.where(chosen, torch.nextafter(A, A + torch.randn(A.shape, generator=draws)), A), B

def in_parts(pack, *rest):
    size = -(-len(pack) // parts)
    return [one for start in range(0, len(pack), size) for one in cut(pack[start : start + size], *rest)]

INITS["kaiming"], plan.cut_to_fit = from_uniform(jittered), in_parts
from rankwise.cli import main
sys.exit(main(arguments))
"""


def run(k: int, options: Sequence[str], folder: Path) -> tuple[str, str, str, float | None]:
    """One perturbed run: how it was perturbed, the verdict, the answer and its probability."""
    threads, parts, out = 1 + k % 2, 1 + k // 2 % 3, folder / str(k)
    command = [sys.executable, "-c", PERTURBED, str(parts), str(k), "digits", *options, "--out", str(out), "--quiet"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True, capture_output=True)
    results = json.loads((out / "results.json").read_text())
    verdict, name = results["answer"]["verdict"], results["answer"]["name"]
    within = {one["name"]: one["p_within"] for one in results["configurations"]}
    return f"{threads} | {parts}", verdict, name, within.get(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first perturbation")
    parser.add_argument("--tolerance", default="4%")
    parser.add_argument("--confidence", default="0.99")
    args = parser.parse_args()
    print("| run | threads | parts | verdict | answer | P(within) |")
    print("|---:|---:|---:|---|---|---:|")
    answers: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.first, args.first + args.runs):
            options = ["--tolerance", args.tolerance, "--confidence", args.confidence]
            how, verdict, name, within = run(k, options, Path(folder))
            answers.add((verdict, name))
            print(f"| {k} | {how} | {verdict} | {name} | {'' if within is None else f'{within:.4f}'} |", flush=True)
    sys.exit(len(answers) > 1)


if __name__ == "__main__":
    main()
