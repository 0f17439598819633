"""The least that the digits sweep can cost in torch's kernels, beside peft and Rankwise, in one run.

    python benchmarks/digits_floor.py [--epochs 3] [--repeats 5] [--threads 2] [--record]

A step of the digits pack is written out by hand: its gather, products, activations, dropout, loss, gradients and AdamW,
each one call into buffers that exist beforehand, under `no_grad`; no autograd, no modules, no schedules, no validation.
Masks are drawn as a pack draws them, from a seed for each batch and layer; finding out which seed that is is left out.
What is left is what torch's kernels take on this machine for the adapters of `digits_vs_peft.py`: whoever calls these
kernels can't be faster. It runs in one process with all threads, and as two halves side by side in two processes with
one thread each, r = 64 in one and the smaller ranks in the other. "A step alone" is a pack's own: gather, gradients and
AdamW, without schedules, curves and validation, which the floor lacks too.
"""

import argparse
import itertools
import multiprocessing
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import digits_vs_peft as against
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.sweeps.problem import Splits
from rankwise.tasks.digits.digits import loss, make_problem, pretrain
from rankwise.tasks.digits.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.data.tensors import take

BUCKETS = ((1, 2, 4), (8, 16), (32, 64))
"""Ranks that are padded to the largest of them and share a product, as the pack does it."""
HALVES = (((64,),), ((1, 2, 4), (8, 16), (32,)))
WIDTHS = ((784, 64), (64, 64), (64, 5))
DROPOUT, BATCH = 0.1, 64
ATEN = torch.ops.aten


class Kernels:
    """One step of all adapters, as kernels on buffers.

    Args:
        buckets: Ranks that share a product.
        seeds: Batches of a step; each rank is trained on each.
        dropout: Whether the base's dropout is drawn.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], seeds: int, *, dropout: bool = True) -> None:
        self.G, self.dropout = seeds, dropout
        self.sizes = [(len(ranks) * seeds, max(ranks)) for ranks in buckets]
        self.K = sum(k for k, _ in self.sizes)
        # Adapters side by side, of which equally many read each batch: with one batch all of them.
        self.runs = [self.K] if seeds == 1 else [k for k, _ in self.sizes]
        self.share = torch.full((self.K * BATCH,), 1 / BATCH)
        ends = [sum(k for k, _ in self.sizes[:j]) for j in range(len(self.sizes) + 1)]
        self.own = [slice(*pair) for pair in itertools.pairwise(ends)]
        shapes = [(k, r, width) for i, o in WIDTHS for k, r in self.sizes for width in (i, o)]
        n = sum(torch.Size(shape).numel() for shape in shapes)
        self.theta, self.grads, self.first, self.second = torch.randn(n) * 0.05, *torch.zeros(3, n)
        self.A, self.B = self._views(self.theta, shapes)
        self.dA, self.dB = self._views(self.grads, shapes)
        self.steps, self.generator = torch.zeros(()), torch.Generator()
        self.W = [torch.randn(o, i) / i**0.5 for i, o in WIDTHS]
        self.b = [torch.randn(o) * 0.1 for _, o in WIDTHS]
        G, K = seeds, self.K
        self.x, self.frozen = torch.empty(G * BATCH, 784), torch.empty(G * BATCH, 64)
        self.y = [torch.empty(K, BATCH, o) for _, o in WIDTHS]
        self.h = [torch.empty(K, BATCH, 64) for _ in range(2)]
        self.dh = [torch.empty(K, BATCH, 64) for _ in range(2)]
        self.V, self.dV = ([torch.empty(K, o, i) for i, o in WIDTHS[1:]] for _ in range(2))
        self.z = [torch.empty(G, k // G * r, BATCH) for k, r in self.sizes]
        self.dz = [torch.empty(k, r, BATCH) for k, r in self.sizes]
        self.mask = [torch.ones(G, BATCH, 64) for _ in range(2)]
        # Scaling B and its gradient: two passes over half of the numbers.
        self.scale, self.scaled = torch.ones(n // 2), torch.empty(n // 2)

    def _views(
        self, vector: Tensor, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """A (K, r, d_in) and the transposes of B (K, r, d_out), by layer and bucket."""
        parts = vector.split([torch.Size(shape).numel() for shape in shapes])
        stacks = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        m = len(self.sizes)
        layers = [stacks[2 * m * i : 2 * m * (i + 1)] for i in range(len(WIDTHS))]
        return [layer[::2] for layer in layers], [layer[1::2] for layer in layers]

    @torch.no_grad()
    def gradients(self, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Fill `grads`, and return every adapter's loss; rows (G * BATCH,), those of one batch side by side."""
        G, K = self.G, self.K
        torch.index_select(images, 0, rows, out=self.x)
        targets = labels.index_select(0, rows).view(G, 1, BATCH)
        # Adapters of a bucket lie by seed: bucket after bucket, each has (seed, rank) in this order.
        targets = torch.cat([targets.expand(G, k // G, BATCH).reshape(-1) for k in self.runs])
        x = self.x.view(G, BATCH, 784)
        torch.addmm(self.b[0], self.x, self.W[0].T, out=self.frozen)
        frozen = self.frozen.view(G, 1, BATCH, 64)
        for j, (k, r) in enumerate(self.sizes):
            torch.bmm(self.A[0][j].view(G, -1, 784), x.mT, out=self.z[j])
            y = self.y[0][self.own[j]]
            y.view(G, k // G, BATCH, 64).copy_(frozen)
            y.baddbmm_(self.z[j].view(k, r, BATCH).mT, self.B[0][j])
        self._activate(0)
        for layer in (1, 2):
            V = self.V[layer - 1]
            for j, own in enumerate(self.own):
                torch.baddbmm(self.W[layer], self.B[layer][j].mT, self.A[layer][j], out=V[own])
            torch.baddbmm(self.b[layer], self.h[layer - 1], V.mT, out=self.y[layer])
            if layer == 1:
                self._activate(1)
        outputs = torch.log_softmax(self.y[2].view(-1, 5), 1)
        losses, total = ATEN.nll_loss_forward.default(outputs, targets, None, 0, -100)
        dy = ATEN.nll_loss_backward.default(self.share, outputs, targets, None, 0, -100, total)
        dy = ATEN._log_softmax_backward_data.default(dy, outputs, 1, torch.float32).view(K, BATCH, 5)
        for layer in (2, 1):
            torch.bmm(dy.mT, self.h[layer - 1], out=self.dV[layer - 1])
            dh = torch.bmm(dy, self.V[layer - 1], out=self.dh[layer - 1])
            for j, own in enumerate(self.own):
                dV = self.dV[layer - 1][own]
                torch.bmm(self.B[layer][j], dV, out=self.dA[layer][j])
                torch.bmm(self.A[layer][j], dV.mT, out=self.dB[layer][j])
            if self.dropout:
                self._mask(dh, layer - 1)
            dy = ATEN.threshold_backward.default(dh, self.h[layer - 1], 0)
        for j, (k, r) in enumerate(self.sizes):
            torch.bmm(self.B[0][j], dy[self.own[j]].mT, out=self.dz[j])
            torch.bmm(self.dz[j].view(G, -1, BATCH), x, out=self.dA[0][j].view(G, -1, 784))
            torch.bmm(self.z[j].view(k, r, BATCH), dy[self.own[j]], out=self.dB[0][j])
        return losses.view(K, BATCH).mean(1)

    @torch.no_grad()
    def step(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Gradients and AdamW."""
        self.gradients(images, labels, rows)
        half = len(self.scale)
        self.grads[:half].mul_(self.scale)
        self.steps += 1
        vectors = [[v] for v in (self.theta, self.grads, self.first, self.second)]
        settings = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False}
        torch._fused_adamw_(*vectors, [], [self.steps], lr=1e-3, **settings)
        torch.mul(self.theta[:half], self.scale, out=self.scaled)

    def _activate(self, i: int) -> None:
        torch.clamp_min(self.y[i], 0, out=self.h[i])
        if self.dropout:
            # Each batch's numbers from a seed of its own, as a pack's are keyed; which seed costs nothing.
            for mask in self.mask[i]:
                mask.uniform_(generator=self.generator.manual_seed(i))
            self.mask[i].ge_(DROPOUT)
            self.mask[i].mul_(1 / (1 - DROPOUT))
            self._mask(self.h[i], i)

    def _mask(self, t: Tensor, i: int) -> None:
        mask = self.mask[i].view(self.G, 1, BATCH, 64)
        for own, k in zip(t.split(self.runs), self.runs, strict=True):
            own.view(self.G, k // self.G, BATCH, 64).mul_(mask)


def check() -> float:
    """How far the gradients written out are from autograd's, relative; without dropout."""
    torch.manual_seed(0)
    kernels, seeds = Kernels(BUCKETS, 2, dropout=False), 2
    images, labels = torch.rand(500, 784), torch.randint(0, 5, (500,))
    rows = torch.randint(0, 500, (seeds * BATCH,))
    losses = kernels.gradients(images, labels, rows)
    theirs, place = [], 0
    leaves = [[t.clone().requires_grad_() for t in layer] for stacks in (kernels.A, kernels.B) for layer in stacks]
    A, B = leaves[: len(WIDTHS)], leaves[len(WIDTHS) :]
    for j, (k, _) in enumerate(kernels.sizes):
        for i in range(k):
            own = rows.view(seeds, BATCH)[i // (k // seeds)]
            h = images[own]
            for layer, (W, b) in enumerate(zip(kernels.W, kernels.b, strict=True)):
                h = F.linear(h, W + B[layer][j][i].T @ A[layer][j][i], b)
                h = h.relu() if layer < 2 else h
            theirs.append(F.cross_entropy(h, labels[own]))
            place += 1
    torch.stack(theirs).sum().backward()
    pairs = [
        (leaf.grad, ours)
        for stacks, grads in ((A, kernels.dA), (B, kernels.dB))
        for layer, own in zip(stacks, grads, strict=True)
        for leaf, ours in zip(layer, own, strict=True)
    ]
    worst = max(float((ours - theirs).norm() / theirs.norm()) for theirs, ours in pairs)
    return max(worst, float((losses - torch.stack(theirs).detach()).abs().max()))


def timed(buckets: Sequence[Sequence[int]], seeds: int, threads: int, data: Sequence[Tensor], epochs: int) -> float:
    """Milliseconds a step."""
    torch.set_num_threads(threads)
    kernels, (images, labels) = Kernels(buckets, seeds), data
    n = len(labels)
    steps = n // BATCH
    for epoch in range(epochs + 1):
        if epoch == 1:  # the first warms up
            start = time.perf_counter()
        order = torch.stack([torch.randperm(n)[: steps * BATCH] for _ in range(seeds)]).view(seeds, steps, BATCH)
        for rows in order.transpose(0, 1).flatten(1).contiguous():
            kernels.step(images, labels, rows)
    return (time.perf_counter() - start) / (steps * epochs) * 1e3


def timed_pack(base: nn.Module, data: Splits, seeds: int, threads: int, epochs: int) -> float:
    """Milliseconds of a step of Rankwise's pack alone: what `Kernels.step` does."""
    torch.set_num_threads(threads)
    members = [
        Member(name=f"r{r}-s{s}", seed=s, lora=LoRAConfig(r=r, alpha=32, seed=s))
        for r in against.RANKS
        for s in range(seeds)
    ]
    pack, rates = Pack(base, members, loss), torch.full((len(members),), 1e-3)
    n = len(data.train[1])
    steps = n // BATCH
    with pack.attached(tuple(t[:4] for t in data.train), training=True):
        for epoch in range(epochs + 1):
            if epoch == 1:  # the first warms up
                start = time.perf_counter()
            order = torch.stack([torch.randperm(n)[: steps * BATCH] for _ in range(seeds)]).view(seeds, steps, BATCH)
            for i in range(steps):
                pack.step(take(data.train, order[:, i]), rates, None, None)
        return (time.perf_counter() - start) / (steps * epochs) * 1e3


def _half(i: int, seeds: int, data: Sequence[Tensor], epochs: int, both: Barrier, answers: Queue) -> None:
    torch.set_num_threads(1)
    both.wait()
    answers.put(timed(HALVES[i], seeds, 1, data, epochs))


def timed_in_halves(seeds: int, data: Sequence[Tensor], epochs: int) -> float:
    """Milliseconds a step of the slower of two processes with one thread each, that run half of the adapters each."""
    context = multiprocessing.get_context("spawn")
    both, answers = context.Barrier(len(HALVES)), context.Queue()
    # Alive only while they are measured: beside them everything else would be slower.
    halves = [context.Process(target=_half, args=(i, seeds, data, epochs, both, answers)) for i in range(len(HALVES))]
    for half in halves:
        half.start()
    slower = max(answers.get() for _ in halves)
    for half in halves:
        half.join()
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="passes over the 3,406 training images")
    parser.add_argument("--repeats", type=int, default=5, help="turns of all")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--record", action="store_true", help="append the figures to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    off = check()
    print(f"Gradients against autograd's: {off:.1e} off (relative)", flush=True)
    if off > 1e-4:
        raise SystemExit("The kernels compute something else.")
    problem = make_problem(load_digits_data("embedded"), torch.device("cpu"))
    base, data = pretrain(problem, DigitsOptions()), problem.splits["new"]
    images, labels = data.train[0].flatten(1), data.train[1]
    against.with_peft(base, data, 8, 0, 1)
    against.with_rankwise(base, data, (0,), 1)
    epochs, steps = arguments.epochs, arguments.epochs * -(-len(labels) // BATCH)
    lines: list[str] = []
    for seeds in (1, 5):
        turns: list[list[float]] = []
        for _ in range(arguments.repeats):
            torch.set_num_threads(arguments.threads)
            times = [time.perf_counter()]
            for r in against.RANKS:
                for seed in range(seeds):
                    against.with_peft(base, data, r, seed, epochs)
            times.append(time.perf_counter())
            against.with_rankwise(base, data, tuple(range(seeds)), epochs)
            times.append(time.perf_counter())
            measured = [(b - a) / steps * 1e3 for a, b in itertools.pairwise(times)]
            measured.append(timed_pack(base, data, seeds, arguments.threads, epochs))
            measured.append(timed(BUCKETS, seeds, arguments.threads, (images, labels), epochs))
            measured.append(timed_in_halves(seeds, (images, labels), epochs))
            turns.append(measured)
        milliseconds = [statistics.median(column) for column in zip(*turns, strict=True)]
        ratios = [statistics.median(turn[0] / turn[i] for turn in turns) for i in (1, 3, 4)]
        ratios.append(statistics.median(turn[2] / turn[3] for turn in turns))
        lines.append(f"| 7 ranks x {seeds} | " + " | ".join(f"{v:.2f}" for v in [*milliseconds, *ratios]) + " |")
        print(lines[-1], flush=True)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "peft"))
    head = (
        f"\n## {datetime.now(UTC):%Y-%m-%d} digits_floor.py --epochs {epochs} --repeats {arguments.repeats} "
        f"--threads {arguments.threads}\n\n{versions}, Python {platform.python_version()}, {platform.machine()} CPU. "
        "Milliseconds a step of all adapters (medians), and how many times as fast as peft.\n\n"
        "| sweep | peft | Rankwise | a step alone | kernels alone | kernels alone, two processes | peft / Rankwise | "
        "peft / kernels | peft / kernels, two processes | a step alone / kernels |\n" + "|---" * 10 + "|\n"
    )
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
