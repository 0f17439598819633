"""What a step takes is counted: tensors while they live, views and writes into others not at all."""

import mmap
import os
from pathlib import Path

import pytest
import torch

from rankwise.pack.precision import supported
from rankwise.train.machine.memory import (
    KERNELS_KEPT,
    RECENT,
    Room,
    free_bytes,
    give_back,
    kernel_bytes,
    peak_bytes,
    resident_peak,
    watched_peak,
)

CPU = torch.device("cpu")


def test_what_lives_at_once_is_counted():
    def run():
        first = torch.zeros(1000)
        second = first + 1
        del first
        return second.mul(2)

    # Two of the three vectors of 4,000 bytes live at a time.
    assert peak_bytes(run, CPU) == 8000


def test_views_and_writes_in_place_are_no_memory():
    x = torch.zeros(100, 10)
    assert peak_bytes(lambda: x.view(-1)[5:].add_(1), CPU) == 0
    assert peak_bytes(lambda: torch.add(x, 1, out=x), CPU) == 0


def test_what_the_backward_pass_needs_is_counted():
    x = torch.zeros(1000, requires_grad=True)

    def chain(n):
        y = x
        for _ in range(n):
            y = y.exp()
        return y.sum()

    # Every exp keeps its own output.
    assert peak_bytes(lambda: chain(6), CPU) - peak_bytes(lambda: chain(4), CPU) == 8000


def test_the_cpu_has_memory_free():
    free = free_bytes(CPU)
    assert free is not None
    assert 1_000_000 < free < 1 << 50
    assert free_bytes(torch.device("meta")) is None


@pytest.mark.skipif(resident_peak() is None, reason="only Linux tells")
def test_machine_code_that_libraries_made_is_seen() -> None:
    before = kernel_bytes()
    flags, executable = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC
    with mmap.mmap(-1, 1 << 20, flags, executable), mmap.mmap(-1, 1 << 20, flags, mmap.PROT_READ):
        assert kernel_bytes() == before + (1 << 20)
    assert kernel_bytes() == before


@pytest.mark.skipif(resident_peak() is None or not supported(CPU), reason="where oneDNN makes such kernels")
def test_each_shape_of_a_product_in_bfloat16_has_its_kernels() -> None:
    weights, x = torch.zeros(256, 256, dtype=torch.bfloat16), torch.zeros(2000, 256, dtype=torch.bfloat16)
    before = kernel_bytes()
    for n in range(1111, 1121):
        x[:n] @ weights
    made = kernel_bytes() - before
    assert 0 < made <= 20 * KERNELS_KEPT / 1024
    x[:1111] @ weights
    assert kernel_bytes() - before == made, "made once"


@pytest.mark.skipif(resident_peak() is None, reason="only Linux tells")
def test_what_is_resident_is_seen_also_once_it_is_free():
    with watched_peak(CPU) as peak:
        before = peak()
        torch.ones(50 << 20)
    seen = peak()
    assert before is not None
    assert seen is not None
    assert 190 << 20 < seen - before < 240 << 20
    with watched_peak(CPU) as peak:
        again = peak()
    assert again is not None
    assert again < before + (40 << 20), "an earlier peak is forgotten"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(resident_peak() is None, reason="only Linux tells")
def test_a_batch_larger_than_the_last_begins_without_what_they_left() -> None:
    room, tiny, small, large = Room(CPU), torch.zeros(1, 3), torch.zeros(1, 4), torch.zeros(1, 8)
    for _ in range(RECENT):
        with room.of((tiny, tiny)):
            pass
    for batch, gives_back in (
        *[(small, True)] * 2,  # one as large before it was rare too
        (small, False),
        (large, True),
        (small, False),
        (large, True),
        (large, False),
        *[(small, False)] * RECENT,
        (large, True),
        *[(tiny, False)] * RECENT,
        (small, False),
    ):
        # Pieces that glibc keeps: small enough for its heap, each between two as large that stay.
        pieces = [torch.ones(25_000) for _ in range(2000)]
        stay = pieces[::2]
        del pieces
        before = resident()
        with room.of((batch, batch)):
            assert (before - resident() > 50 << 20) == gives_back
        del stay
        give_back()


@pytest.mark.skipif(resident_peak() is None, reason="only Linux tells")
def test_large_tensors_of_a_large_batch_are_given_back_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, kept = torch.zeros(1, 3), 50 * 2_000_000
    filler = [torch.ones(250_000) for _ in range(300)]  # else they would lie in what earlier tests have freed

    def left() -> int:
        """Bytes that stay after every second of a hundred tensors has ended, above those that live."""
        give_back()
        before = resident()
        tensors = [torch.ones(500_000) for _ in range(100)]
        del tensors[::2]
        return resident() - before - kept

    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    with Room(CPU).of(batch):
        inside = left()
    assert inside < 20 << 20
    assert left() > 70 << 20, "afterwards they stay in the heap, where the next step finds them"
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4000000000")
    with Room(CPU).of(batch):
        assert left() > 70 << 20, "the user has chosen"
    del filler
