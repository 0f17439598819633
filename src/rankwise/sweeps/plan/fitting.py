"""Packs that fit: what each run takes in memory, measured on one step of its kind alone, and packs cut to a limit."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from rankwise.pack.resolved import resolve
from rankwise.sweeps.problem import Problem, Run
from rankwise.train.loop import PackTraining
from rankwise.train.machine.memory import free_bytes

One = TypeVar("One")

COPIES = 9
"""Numbers that are kept for each trained one, at most: itself, the best so far, gradient, two moments, s, s B,
the optimiser's update and its rate."""

SHARE = 0.9
"""The default share of a device's free memory for packs: other programs and the allocator's gaps need some too."""


def pack_training(model: nn.Module, runs: Sequence[Run], problem: Problem) -> PackTraining:
    """The runs of a pack, ready to train."""
    rotation, (train, validation) = problem.rotation_of(runs[0].data), problem.data_of(runs[0].data)
    return PackTraining(
        model,
        [(run.member, run.training) for run in runs],
        train,
        validation,
        problem.loss,
        problem.metric,
        states={run.name: run.start for run in runs},
        feed=problem.feed,
        cut=None if rotation is None else rotation.cut,
        inspections=problem.inspections,
    )


Probes = dict[str, int]
"""Bytes of a step of one run, measured once for each kind of run (`probe_key`); they stand in the plan."""


def state_bytes(model: nn.Module) -> int:
    """Bytes that are kept for each number that is trained."""
    size = next(p.element_size() for p in model.parameters() if p.is_floating_point())
    # Over half precision what is trained is in float32, with a copy in the base's type.
    # float16 also takes a copy of parameters and moments where a step is left out.
    return COPIES * size if size >= 4 else (COPIES + 3) * 4 + size


def kind_of(model: nn.Module, run: Run) -> tuple[object, ...]:
    """The key that the memory and time of a run's step depend on, without its rank."""
    resolved = resolve(model, run.member)
    targets = tuple(t.name for t in resolved.targets)
    dropout = run.member.lora is not None and run.member.lora.dropout > 0
    return run.data, run.training.batch_size, targets, resolved.trained_parameters, dropout


def probe_key(kind: tuple[object, ...], parameters: int) -> str:
    """A kind of run, and how many numbers it trains, as a plan names them.

    Examples:
        >>> probe_key(("data", 32), 10)
        'bd26f915044c74ca'
    """
    return hashlib.sha256(repr((*kind, parameters)).encode()).hexdigest()[:16]


Measure = Callable[[Run, int], int]
"""(the run of its kind with the most parameters, how many are of the kind) -> bytes of its step."""


def bytes_of_runs(
    model: nn.Module,
    runs: Sequence[Run],
    problem: Problem,
    probes: Probes | None = None,
    measure: Measure | None = None,
) -> dict[str, int]:
    """Bytes that each run needs on top of the base, by name.

    Of the runs that adapt the same modules and read batches of one size, the one with the most parameters takes a step
    alone; the others take as much, but for their own parameters. A pack takes less than the sum of its runs: they
    share what runs before the branch point, and not all are at their peak at once.

    Args:
        model: The base.
        runs: The runs.
        problem: Data, loss and metric.
        probes: What was measured before, and is not again; what is measured is added.
        measure: Measures a run; None takes the gradients of its largest step.
    """
    probes = {} if probes is None else probes
    measure = measure or (lambda run, of_kind: pack_training(model, [run], problem).peak_bytes())
    kinds: dict[tuple[object, ...], list[tuple[int, Run]]] = {}
    for run in runs:
        kinds.setdefault(kind_of(model, run), []).append((resolve(model, run.member).parameter_count(), run))
    of_one = state_bytes(model)
    needed: dict[str, int] = {}
    for kind, own in kinds.items():
        most, largest = max(own, key=lambda one: one[0])
        key = probe_key(kind, most)
        if key not in probes:
            probes[key] = measure(largest, len(own))
        needed |= {run.name: probes[key] + of_one * parameters for parameters, run in own}
    return {run.name: needed[run.name] for run in runs}


def limit_of(model: nn.Module, memory: int | None, packs: int = 1) -> int | None:
    """The bytes that each of some packs may take on top of the base: as given, or a share of what the device has."""
    if memory is not None:
        return memory
    free = free_bytes(next(model.parameters()).device)
    return None if free is None else int(SHARE * free / packs)


def cut_to_fit(pack: Sequence[One], needed: Callable[[One], int], limit: int | None) -> list[list[One]]:
    """Cut a pack, in its order, into packs that fit; a run that doesn't fit alone is its own pack.

    Args:
        pack: The runs.
        needed: Bytes of each.
        limit: Bytes of a pack; None for no limit.

    Examples:
        >>> cut_to_fit([3, 3, 2, 9, 1], lambda run: run, 6)
        [[3, 3], [2], [9], [1]]
    """
    if limit is None:
        return [list(pack)]
    packs: list[list[One]] = []
    left = 0
    for run in pack:
        if not packs or needed(run) > left:
            packs.append([])
            left = limit
        packs[-1].append(run)
        left -= needed(run)
    return packs
