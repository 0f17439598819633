"""Measure the memory of a step, and a device's free memory."""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor, UntypedStorage

from rankwise.lora.checks.uncompiled_mode import UncompiledMode, tensors_among
from rankwise.pack.batches import Batch, batch_tensors


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has free now; None where that can't be known."""
    if device.type == "cuda":
        # What torch keeps for itself without using it is free too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pages = os.sysconf_names.keys() & {"SC_PAGE_SIZE", "SC_PHYS_PAGES"}
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if len(pages) == 2 else None


def program_bytes(device: torch.device, base: int) -> int:
    """Memory of the program without the base and its packs: interpreter, libraries, data. None of it is on a GPU.

    Args:
        device: Where the base is.
        base: Its bytes.
    """
    if device.type != "cpu":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return max(0, pages * os.sysconf("SC_PAGE_SIZE") - base)


@contextmanager
def watched_peak(device: torch.device) -> Generator[Callable[[], int | None]]:
    """Watch the most memory that is in use inside this block.

    On CUDA that is what tensors take on the device. On a CPU it is what Linux has resident of the process: libraries,
    the allocator's gaps, and what an operation allocates internally are in it, which no count of tensors sees.

    Args:
        device: Where it computes.

    Yields:
        Returns the bytes, also after the block; None where the system doesn't tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    give_back()
    try:
        # Linux: the high-water mark is set to what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        yield lambda: None
        return
    yield resident_peak if device.type == "cpu" else lambda: None


def resident_peak() -> int | None:
    """Bytes that this process has had resident at most; None where the system doesn't tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


KERNELS_KEPT = 1024 * (512 << 10)
"""Bytes that `kernel_bytes` grows to: oneDNN keeps its last 1,024 kernels unless told otherwise (its documentation,
"Primitive Cache"), of 512 KiB each for products in bfloat16, as measured."""


def kernel_bytes() -> int:
    """Bytes of machine code that libraries have made in this process; 0 where the system doesn't tell.

    oneDNN, which multiplies in bfloat16 on a CPU, makes a kernel for each shape of a product, so that every further
    length of texts takes memory that no tensor accounts for.
    """
    try:
        maps = [line.split() for line in Path("/proc/self/maps").read_text(errors="replace").splitlines()]
    except OSError:
        return 0
    made = [of[0].split("-") for of in maps if len(of) == 5 and "x" in of[1]]  # of no file, and executable
    return sum(int(end, 16) - int(start, 16) for start, end in made)


def give_back() -> None:
    """Give what glibc's allocator holds without using it back to the system; nothing elsewhere."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc's allocator; None with another allocator or system."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


RECENT = 32
"""Batches among whose pieces a larger one finds no room."""

LARGE = 2 / 3
"""The share of the largest batch's size above which a batch is among the large ones: what is smaller takes less than
the largest even where it finds no room."""

MAPPED = 1 << 20
"""A large batch's tensors of at least this many bytes are allocated in memory mappings of their own."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`; their names are those of its manual."""


class Room:
    """Memory for what is larger than what came before it.

    glibc keeps what steps have freed, in pieces as large as their tensors were. For a larger batch these are too small:
    its memory would lie beside that of all smaller ones, so that a process grows for as long as its batches do, to
    what no few steps foretell (MiniLM in full, 20 steps: 2,086 MiB where 1,950 do). So they are given back before it.
    Smaller batches soon break up the pieces of a large one too; so that is done before every batch that is
    among the large ones, and larger than all but one of the last few (three seeds of MiniLM, 282 steps: 4,554 MiB
    where 4,003 do). Such a batch's large tensors then lie in pages of their own, which the system has back as each
    ends: in a heap that is full of holes they would take four tenths more. That takes time, so where sizes don't
    differ it is done at the start only, and where they do, seldom.

    Args:
        device: Where it computes.
        largest: Numbers of the largest batch to come; 0 where that isn't known.
    """

    def __init__(self, device: torch.device, largest: int = 0) -> None:
        self._largest = largest if device.type == "cpu" else sys.maxsize
        self._recent: deque[int] = deque(maxlen=RECENT)

    @contextmanager
    def of(self, batch: Batch) -> Generator[None]:
        """Make room for a batch that passes inside this block."""
        size = sum(t.numel() for t in batch_tensors(batch))
        rare = sum(other >= size for other in self._recent) < 2 and size > LARGE * self._largest
        self._recent.append(size)
        if not rare:
            yield
            return
        self._largest = max(self._largest, size)
        give_back()
        with _in_pages_of_their_own():
            yield

    def make_again(self) -> None:
        """Before something else that is large."""
        if self._largest < sys.maxsize:
            give_back()


@contextmanager
def _in_pages_of_their_own() -> Generator[None]:
    """Let glibc's allocator take large tensors from the system, and give them back, one by one inside this block.

    Afterwards it keeps up to 32 MiB each in its heap, as it does by itself once such have been freed. Where someone has
    set the allocator, or it isn't glibc's, nothing changes.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    set_to = None if chosen else _of_glibc("mallopt")
    if set_to is None:
        yield
        return
    set_to(M_MMAP_THRESHOLD, MAPPED)
    try:
        yield
    finally:
        # glibc's own largest, and what it keeps at the heap's end for it.
        set_to(M_MMAP_THRESHOLD, 32 << 20)
        set_to(M_TRIM_THRESHOLD, 64 << 20)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory, beyond what was in use before, that a function has in use at a time.

    On CUDA the allocator tells. Elsewhere every tensor that an operation makes is counted as long as it lives;
    what an operation allocates internally is not seen.

    Examples:
        >>> peak_bytes(lambda: torch.zeros(1000).exp(), torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    counted = _Living()
    with counted:
        run()
    return counted.peak


class _Living(UncompiledMode):
    """Counts the bytes of tensors made while it is on, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._living: dict[int, ref[UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tensors_among((*args, *kwargs.values())) if _has_memory(t)]
        known = {id(t) for t in given}
        result = func(*args, **kwargs)
        made = [t for t in tensors_among((result,)) if _has_memory(t) and id(t) not in known]
        own = {t.untyped_storage().data_ptr() for t in given}
        for t in made:
            storage = t.untyped_storage()
            place = storage.data_ptr()
            # A view, or a result written into an argument, is no new memory.
            if place and place not in own:
                self._add(place, storage)
        return result

    def _add(self, place: int, storage: UntypedStorage) -> None:
        before = self._living.get(place)
        if before is not None and before() is not None:
            return
        n = storage.nbytes()

        def ended(_: object) -> None:
            self._now -= n

        # torch keeps a storage's object for as long as any tensor, or the graph, holds its numbers.
        self._living[place] = ref(storage, ended)
        self._now += n
        self.peak = max(self.peak, self._now)


def _has_memory(t: Tensor) -> bool:
    """Whether a tensor has its own numbers: none that torch.func has wrapped, whose inside is counted."""
    try:
        return t.untyped_storage().data_ptr() >= 0
    except RuntimeError:
        return False
