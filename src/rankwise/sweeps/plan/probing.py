"""Time and memory of a pack, measured on a few of its steps before it trains."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rankwise.train.loop import PackTraining
from rankwise.train.machine.memory import kernel_bytes, watched_peak

SHARE = 0.01
"""Timed steps, as a share of those that a training takes: probing must stay short compared with it."""

FEW, MOST = 2, 12
"""Timed steps at least and at most."""

SHORT = 0.05
"""Seconds below which an evaluation is timed again on more rows: on few ones the fixed cost of its calls decides."""


@dataclass(frozen=True)
class Probe:
    """A pack's cost.

    Args:
        setup: Seconds until the first step: the pack is built, and compared with its adapters alone.
        counting: Seconds in which `bytes` was counted.
        step: Seconds of a step.
        row: Seconds of an evaluated row, of all adapters.
        bytes: Of the tensors of the largest step, as `PackTraining.peak_bytes` counts them.
        peak: Bytes in use at most while it was measured, of the whole process or of the GPU, the base included; None
            where the system doesn't tell.
        kernels: Bytes of machine code that libraries had made when it had been measured; in `peak`.
        kernels_made: Those that its training makes, a kernel for each shape of a product.
    """

    setup: float
    counting: float
    step: float
    row: float
    bytes: int
    peak: int | None
    kernels: int = 0
    kernels_made: int = 0


def probe(make: Callable[[], PackTraining], device: torch.device, steps: int) -> Probe:
    """Measure a pack.

    Steps are timed at sizes from all over the data, as often as befits a training of so many steps, after one of the
    smallest, which warms up. The largest step then shows the memory, and how much more than its share it takes.

    Args:
        make: Makes the training, which is thrown away.
        device: Where it computes.
        steps: Steps that it would take.
    """
    timed = max(FEW, min(MOST, round(SHARE * steps)))
    places = (1 / 6, 1 / 2, 5 / 6) if timed >= 6 else (1 / 4, 3 / 4)
    with watched_peak(device) as peak:
        clock = time.perf_counter()
        training = make()
        with training.attached(training=True):
            setup = time.perf_counter() - clock
            training.timed_step(0.0)
            before = kernel_bytes()
            turns = [[training.timed_step(place) for place in places] for _ in range(max(1, timed // len(places)))]
            made = kernel_bytes() - before
        seconds = [statistics.median(one) for one in zip(*turns, strict=True)]
        rows = min(training.validation_rows, training.batch_size)
        with training.attached(training=False):
            a_row = (took := training.timed_evaluation(rows)) / rows
            if took < SHORT and training.validation_rows > rows:
                rows = training.validation_rows
                a_row = training.timed_evaluation(rows) / rows
        clock = time.perf_counter()
        needed = training.peak_bytes(moves=True)
        counting = time.perf_counter() - clock
        (*sizes, most), every = training.sizes((*places, 1.0))
        a_step = mean_step(list(zip(sizes, seconds, strict=True)), (most, counting), every)
        training.state()  # what a checkpoint is made of
        made = round(made * min(distinct(every), steps) / len(set(sizes)))
        return Probe(setup, counting, a_step, a_row, needed, peak(), kernel_bytes(), made)


def mean_step(measured: Sequence[tuple[int, float]], largest: tuple[int, float], every: Sequence[int]) -> float:
    """The seconds of a step in the mean of all: on the line through measured ones, and above it by what the largest
    step takes more, in proportion to the square of the way there, since attention takes the square of a text's length.

    The line rises at most in proportion to the size, and doesn't fall, whatever was measured.

    Args:
        measured: Size and seconds of steps of usual sizes.
        largest: Those of the largest step.
        every: The sizes of all steps.

    Examples:
        >>> mean_step([(10, 2.0), (30, 4.0)], (50, 6.0), [40])
        5.0
        >>> mean_step([(10, 2.0), (30, 4.0)], (50, 10.0), [20, 35])
        4.25
        >>> mean_step([(10, 2.0), (10, 4.0)], (10, 9.0), [10])
        3.0
    """
    size, took = (statistics.mean(values) for values in zip(*measured, strict=True))
    apart = sum((s - size) ** 2 for s, _ in measured)
    slope = sum((s - size) * t for s, t in measured) / apart if apart else 0.0
    slope = min(max(slope, 0.0), took / size)
    most, seconds = largest
    more = max(seconds - took - slope * (most - size), 0.0)
    above = statistics.mean(max(s - size, 0) ** 2 for s in every) / (most - size) ** 2 if most > size else 0.0
    return took + slope * (statistics.mean(every) - size) + more * above


def distinct(sizes: Sequence[int]) -> float:
    """How many different sizes there are, those included that these steps happen not to have: Chao's estimate from how
    many sizes were seen once and twice (Scandinavian Journal of Statistics 11, 1984; the form without bias).

    Args:
        sizes: Of some steps.

    Examples:
        >>> distinct([5, 5, 5])
        1.0
        >>> distinct([1, 2, 3, 3])
        3.5
    """
    counts = Counter(sizes)
    once, twice = (sum(n == times for n in counts.values()) for times in (1, 2))
    return len(counts) + once * (once - 1) / (2 * (twice + 1))
