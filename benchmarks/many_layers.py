"""What attaching, saving and loading cost over many layers, one layer's forward, and the import: Rankwise beside peft.

    python benchmarks/many_layers.py [--layers 2000] [--repeats 5] [--record]

peft and Rankwise take turns on models of 2,000 Linear layers (16 x 16, r = 8). One layer of 64 x 64 at 4 rows is timed
beside the bare Linear, in rounds of calls that take turns. `import rankwise` and the first use of its public names are
timed in fresh processes, over those of `import torch`. Times are those of this process on the CPU, which other programs
on the machine disturb least; for many layers the clock's seconds stand beside them.
"""

import argparse
import copy
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

import rankwise
from rankwise import LoRAConfig, inject, load_adapter, save_adapter
from rankwise.lora import trainable_parameters

ROWS, WIDTH, R = 4, 64, 8
GOALS = {"inject": 0.3, "save": 0.3, "load": 0.5}


def many(layers: int) -> nn.Module:
    return nn.Sequential(nn.ModuleList(nn.Linear(16, 16) for _ in range(layers)))


Times = dict[str, tuple[float, float]]
"""What was done -> seconds on the CPU, seconds on the clock."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def ours(layers: int) -> Times:
    """Times of inject, save and load; the folder is new and on the disk of temporary files."""
    model = many(layers)
    again = copy.deepcopy(model)  # an adapter is loaded over its own base only
    with tempfile.TemporaryDirectory() as folder:
        return {
            "inject": timed(lambda: inject(model, LoRAConfig(r=R))),
            "save": timed(lambda: save_adapter(model, folder)),
            "load": timed(lambda: load_adapter(again, folder)),
        }


def theirs(layers: int) -> Times:
    """The same with peft."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model, again, kept = many(layers), many(layers), []
    names = [f"0.{number}" for number in range(layers)]
    config = LoraConfig(r=R, target_modules=names)
    with tempfile.TemporaryDirectory() as folder:
        return {
            "inject": timed(lambda: kept.append(get_peft_model(model, config))),
            "save": timed(lambda: kept[0].save_pretrained(folder)),
            "load": timed(lambda: PeftModel.from_pretrained(again, folder)),
        }


def layers_table(layers: int, repeats: int) -> list[str]:
    turns = [(theirs(layers), ours(layers)) for _ in range(repeats + 1)][1:]  # the first turn warms up
    lines = [
        f"| {layers:,} layers | peft, CPU s | Rankwise, CPU s | ratio (median, range) | clock: peft, s | Rankwise, s "
        "(fastest) | goal, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, goal in GOALS.items():
        ratios = sorted(peft[what][0] / mine[what][0] for peft, mine in turns)
        cpu = [statistics.median(turn[side][what][0] for turn in turns) for side in (0, 1)]
        clock = [statistics.median(turn[side][what][1] for turn in turns) for side in (0, 1)]
        lines.append(
            f"| {what} | {cpu[0]:.2f} | {cpu[1]:.3f} | {statistics.median(ratios):.1f}, {ratios[0]:.1f} to "
            f"{ratios[-1]:.1f} | {clock[0]:.2f} | {clock[1]:.3f} ({min(mine[what][1] for _, mine in turns):.3f}) | {goal} |"
        )
    return lines


def layer_table(repeats: int) -> list[str]:
    """One layer's forward in microseconds: the bare Linear, Rankwise, peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    bare, x = nn.Linear(WIDTH, WIDTH).eval(), torch.randn(ROWS, WIDTH)
    mine, model = nn.Linear(WIDTH, WIDTH).eval(), nn.Sequential(nn.Linear(WIDTH, WIDTH))
    inject(mine, LoRAConfig(r=R))
    trainable_parameters(mine)[1].data.normal_()
    peft_layer = get_peft_model(model, LoraConfig(r=R, target_modules=["0"])).base_model.model[0].eval()
    lines = [
        f"| {WIDTH} x {WIDTH} layer, {ROWS} rows | bare, us | Rankwise, us | peft, us | Rankwise / bare "
        "(median, range) | peft / bare | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, gradient, goal in (("under no_grad", False, 3.0), ("with gradient", True, 4.0)):
        rounds: list[tuple[float, float, float]] = []
        with nullcontext() if gradient else torch.no_grad():
            for _ in range(20 * repeats + 1):
                rounds.append((per_call(bare, x), per_call(mine, x), per_call(peft_layer, x)))
        rounds = rounds[1:]
        times = [statistics.median(turn[side] for turn in rounds) * 1e6 for side in range(3)]
        ratios = sorted(turn[1] / turn[0] for turn in rounds)
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        peft_ratio = statistics.median(turn[2] / turn[0] for turn in rounds)
        lines.append(
            f"| {what} | {times[0]:.1f} | {times[1]:.1f} | {times[2]:.1f} | {statistics.median(ratios):.2f}, "
            f"{low:.2f} to {high:.2f} (10% to 90%) | {peft_ratio:.2f} | {goal} |"
        )
    return lines


def per_call(layer: nn.Module, x: torch.Tensor, calls: int = 200) -> float:
    start = time.process_time()
    for _ in range(calls):
        layer(x)
    return (time.process_time() - start) / calls


def import_table(repeats: int) -> list[str]:
    """Seconds that an import adds to `import torch`, in fresh processes."""
    uses = {
        "import rankwise": "import rankwise",
        "all public names": "import rankwise\nfor name in rankwise.__all__: getattr(rankwise, name)",
        "import peft": "import peft",
    }
    lines = ["| import | CPU s over torch (median, range) | goal, s |", "|---|---|---|"]
    for what, code in uses.items():
        script = f"import time, torch\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
        seconds = sorted(
            float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
            for _ in range(repeats)
        )
        goal = "0.15" if what == "import rankwise" else ""
        lines.append(f"| {what} | {statistics.median(seconds):.3f}, {seconds[0]:.3f} to {seconds[-1]:.3f} | {goal} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2000, help="Linear layers in the model")
    parser.add_argument("--repeats", type=int, default=5, help="turns of peft and Rankwise")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # The processes that time the import are to find the Rankwise that runs here.
    os.environ["PYTHONPATH"] = str(Path(rankwise.__file__).parent.parent)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "peft"))
    text = "\n".join(
        [
            f"\n## {datetime.now(UTC):%Y-%m-%d} many_layers.py --layers {arguments.layers} "
            f"--repeats {arguments.repeats}",
            "",
            f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU, 1 thread.",
            "",
            *layers_table(arguments.layers, arguments.repeats),
            "",
            *layer_table(arguments.repeats),
            "",
            *import_table(arguments.repeats),
            "",
        ]
    )
    print(text)
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
