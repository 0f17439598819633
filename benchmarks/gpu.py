"""Packs on a GPU, in bfloat16: against peft one after another, and against the best loop over one adapter.

    python benchmarks/gpu.py [--device cuda] [--parts small,large,layer] [--repeats 10] [--record]

Whole steps with AdamW on random tokens, r = 1 to 64 in turn, all linear layers, random weights: no download. Three sides
take turns in one process, by the clock, the device waited for:

- peft, eager, one adapter after another, all of rank 16, the faster of its two ways: adapters in float32 (its default) and in
  bfloat16;
- solo: a pack of one, r = 16, its whole step recorded once as a CUDA graph and replayed, which leaves no time to
  Python: the best loop over one adapter that we have;
- the pack, eager, as `rankwise sweep` runs it, adapters in float32.

- small: GPT-2's shape (0.12B), 32 adapters of 128 and 512 tokens. Goals: the pack's step takes at most twice ONE step
  of peft; at least 4 times as fast as solo one after another.
- large: the shape of Llama 3.2 1B with a vocabulary of 32,000, 16 adapters of 128, 256 and 1,024 tokens. Goals: 10, 5 and 1.8
  times as fast as peft one after another.
- layer: one 4096 x 4096 layer, 8,192 rows, r = 16, forward and backward. Goals: at most 1.10 of the frozen layer, at
  least 1.35 times as fast as peft.

On a CPU (`--device cpu --tiny`) the same code runs with small shapes and without a graph, which says that it works and
nothing about speed.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from minilm import random_numbers, ratios, turns
from torch import Tensor, nn

from rankwise import LoRAConfig, inject
from rankwise.pack.layers.linear import FACTORED, Layer, Segment, packed_linear
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.stacks.store import Gradient

LR, ALPHA = 1e-4, 32
RANKS = (1, 2, 4, 8, 16, 32, 64, 16)
"""Of a pack's adapters, again and again."""
SOLO = 16

Batch = dict[str, Tensor]
Turn = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A model, how many adapters, and how many rows of how many tokens each has in a step.

    Args:
        title: In words.
        kind: transformers' name.
        settings: Of its configuration.
        tiny: What `--tiny` has in their place.
        k: Adapters.
        lengths: Tokens of a row; a step of an adapter has `rows` of them.
        rows: Rows of a step.
        goals: Of each length, times peft one after another; None where the goal is another.
    """

    title: str
    kind: str
    settings: dict[str, Any]
    tiny: dict[str, Any]
    k: int
    lengths: tuple[int, ...]
    rows: int
    goals: tuple[str, ...]


SHAPES = {
    "small": Shape(
        "GPT-2's shape, 0.12B",
        "gpt2",
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 128},
        k=32,
        lengths=(32, 128),
        rows=4,
        goals=("", ""),
    ),
    "large": Shape(
        "Llama 3.2's shape, 1B",
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 128,
        },
        k=16,
        lengths=(64, 128, 512),
        rows=2,
        goals=("10", "5", "1.8"),
    ),
}


def model_of(shape: Shape, device: str, tiny: bool) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    settings = {**shape.settings, **(shape.tiny if tiny else {}), "use_cache": False}
    config = transformers.AutoConfig.for_model(shape.kind, **settings)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


def _one_text_a_row() -> None:
    """Keep transformers from asking whether rows hold several texts: no side waits for the answer, and the graphed one,
    which can't ask, gets no mask in its place."""
    from transformers import masking_utils

    masking_utils.find_packed_sequence_indices = lambda position_ids: None


def call(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch["input_ids"]).logits


def loss(outputs: Tensor, batch: Batch) -> Tensor:
    """The mean over the following tokens, a value for each row."""
    targets = batch["input_ids"][:, 1:]
    return F.cross_entropy(outputs[:, :-1].float().transpose(1, 2), targets, reduction="none").mean(1)


def peft(model: nn.Module, batch: Batch, *, in_float32: bool) -> Turn:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=SOLO, lora_alpha=ALPHA, target_modules="all-linear")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=in_float32)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    random_numbers(trained)
    optimiser = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        loss(call(adapted, batch), batch).mean().backward()
        optimiser.step()

    return step


def packed(model: nn.Module, batch: Batch, ranks: Sequence[int]) -> Turn:
    members = [Member(name=f"{i}", lora=LoRAConfig(r=r, alpha=ALPHA)) for i, r in enumerate(ranks)]
    pack = Pack(model, members, loss, call=call)
    pack.store.randomise()
    shared = {key: t.unsqueeze(0) for key, t in batch.items()}
    # Rates that differ are the dearer way of the optimiser. On the CPU, as training has them.
    lr = LR * torch.linspace(1, 2, len(pack))
    attached = pack.attached({key: t[:2] for key, t in batch.items()}, training=True)
    attached.__enter__()

    def step() -> None:
        pack.step(shared, lr, None, None)

    step.attached = attached  # kept alive: the model is a pack as long as it is
    return step


def graphed(step: Turn) -> Turn:
    """A step recorded as a CUDA graph, and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        graph.replay()

    replay.step = step  # what it wrote to must live
    return replay


def part_model(shape: Shape, device: str, repeats: int, tiny: bool, clock: Callable[[], float]) -> list[str]:
    on_gpu = device.startswith("cuda")
    lines = [
        f"| {shape.title}, {shape.k} adapters | peft, one step, ms | solo{', graph' if on_gpu else ''}, ms | pack, ms "
        "| pack / ONE step of peft | peft one after another / pack | goal | solo one after another / pack |\n"
        "|---|---|---|---|---|---|---|---|"
    ]
    for length, goal in zip(shape.lengths, shape.goals, strict=True):
        model = model_of(shape, device, tiny)
        ids = torch.randint(0, model.config.vocab_size, (shape.rows, length), device=device)
        batch = {"input_ids": ids}
        ranks = [RANKS[i % len(RANKS)] for i in range(shape.k)]
        solo = packed(model_of(shape, device, tiny), batch, (SOLO,))
        sides = {
            "float32": peft(model_of(shape, device, tiny), batch, in_float32=True),
            "bfloat16": peft(model_of(shape, device, tiny), batch, in_float32=False),
            "solo": graphed(solo) if on_gpu else solo,
            "pack": packed(model, batch, ranks),
        }
        s = turns(sides, repeats, clock)
        name = min(("float32", "bfloat16"), key=lambda side: statistics.median(s[side]))
        one, alone, pack = s[name], s["solo"], s["pack"]
        ms = [f"{statistics.median(side) * 1e3:.2f}" for side in (one, alone, pack)]
        lines.append(
            f"| {shape.rows * length} tokens an adapter, peft in {name} | {' | '.join(ms)} | {ratios(pack, one)} "
            f"| {ratios([t * shape.k for t in one], pack)} | {goal} | {ratios([t * shape.k for t in alone], pack)} |"
        )
        print(lines[-1], flush=True)
        del sides, solo, model  # before the next ones are made
    return lines


def part_layer(device: str, repeats: int, tiny: bool, clock: Callable[[], float]) -> list[str]:
    from peft import LoraConfig, get_peft_model

    n, rows = (64, 32) if tiny else (4096, 8192)
    torch.manual_seed(0)

    def fresh() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(n, n, bias=False)).to(device, torch.bfloat16).requires_grad_(False)

    x = torch.randn(rows, n, device=device, dtype=torch.bfloat16).requires_grad_()
    dy = torch.randn(rows, n, device=device, dtype=torch.bfloat16)

    def passing(run: Callable[[Tensor], Tensor]) -> Turn:
        def turn() -> None:
            x.grad = None
            run(x).backward(dy)

        return turn

    def with_peft(in_float32: bool) -> nn.Module:
        config = LoraConfig(r=SOLO, lora_alpha=ALPHA, target_modules=["0"])
        model = get_peft_model(fresh(), config, autocast_adapter_dtype=in_float32)
        random_numbers([p for p in model.parameters() if p.requires_grad])
        return model

    own = fresh()
    inject(own, LoRAConfig(r=SOLO, alpha=ALPHA))
    random_numbers([p for p in own.parameters() if p.requires_grad])
    weight = fresh()[0].weight
    A, B = (0.02 * torch.randn(1, SOLO, n, device=device) for _ in range(2))
    half, anchor = torch.bfloat16, torch.zeros((), device=device, requires_grad=True)
    gradients = [Gradient(torch.zeros_like(t), [True]) for t in (A, B)]  # as in a step's backward pass
    stacks = Segment(0, 1, A.to(half), B.to(half).mT, gradients[0], _transposed(gradients[1]))
    layer = Layer(weight, None, 1, [stacks])

    def in_pack(x: Tensor) -> Tensor:
        for gradient in (stacks.A_grad, stacks.B_grad):
            gradient.fresh = True
        return packed_linear(anchor, x.unsqueeze(0), None, layer, FACTORED).squeeze(0)

    sides = {
        "frozen": passing(fresh()),
        "float32": passing(with_peft(True)),
        "bfloat16": passing(with_peft(False)),
        "inject": passing(own),
        "pack": passing(in_pack),
    }
    s = turns(sides, repeats * 10, clock)
    name = min(("float32", "bfloat16"), key=lambda side: statistics.median(s[side]))
    return [
        f"| one layer, {n} x {n}, {rows:,} rows, r = {SOLO} | ms | over the frozen layer | peft / this |\n|---|---|---|---|",
        *(
            f"| {title} | {statistics.median(s[side]) * 1e3:.3f} | {ratios(s[side], s['frozen'])} | {ratios(s[name], s[side])} |"
            for title, side in (
                ("frozen", "frozen"),
                ("peft, adapter in float32", "float32"),
                ("peft, adapter in bfloat16", "bfloat16"),
                ("`inject` (float32)", "inject"),
                ("pack of one (goals 1.10 and 1.35)", "pack"),
            )
        ),
    ]


def _transposed(gradient: Gradient) -> Gradient:
    """The gradient of an up-projection, which lies transposed."""
    return Gradient(gradient.stack.mT, [True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu with --tiny")
    parser.add_argument("--parts", default="small,large,layer", help="which, by comma")
    parser.add_argument("--repeats", type=int, default=10, help="turns of each side; of a layer ten times as many")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    device, tiny = arguments.device, arguments.tiny
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("No CUDA device is to be had; --device cpu --tiny runs the same code with small shapes.")
    if not device.startswith("cuda") and not tiny:
        raise SystemExit("On a CPU these shapes take hours; add --tiny.")
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)  # streams and graphs are the current device's
    _one_text_a_row()

    def clock() -> float:
        """The time at which all that was asked of the device is done."""
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    where = torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()} CPU, tiny shapes"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    blocks = [
        f"\n## {datetime.now(UTC):%Y-%m-%d} gpu.py --device {device} --parts {arguments.parts} "
        f"--repeats {arguments.repeats}{' --tiny' * tiny}\n",
        f"{versions}, Python {platform.python_version()}, {where}, bfloat16.\n",
    ]
    for part in arguments.parts.split(","):
        if part == "layer":
            lines = part_layer(device, arguments.repeats, tiny, clock)
        else:
            lines = part_model(SHAPES[part], device, arguments.repeats, tiny, clock)
        blocks.append("\n".join(lines) + "\n")
        print(blocks[-1], flush=True)
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write("\n".join(blocks))


if __name__ == "__main__":
    main()
