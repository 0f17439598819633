"""The plan of a sweep: which run trains in which pack, in which order; written before training, followed on resume."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rankwise.errors import CheckpointError
from rankwise.pack.optimisers import optimiser_of
from rankwise.pack.resolved import resolve
from rankwise.sweeps.plan.batching import apart
from rankwise.sweeps.plan.fitting import Measure, Probes, bytes_of_runs, cut_to_fit, limit_of
from rankwise.sweeps.plan.spreading import spread
from rankwise.sweeps.problem import Problem, Run
from rankwise.train.prefix import own_tensors
from rankwise.writing import read_checked, write_checked

FORMAT = "rankwise-plan-3"
FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep, as plain data.

    Args:
        packs: Names of the runs of each pack, in the order in which packs train.
        memory: Bytes that each run needs on top of the base, by name (`rankwise.sweeps.plan.fitting`).
        limit: Bytes that a pack may need; None where there is no limit.
        base_bytes: Those of the base.
        rungs: Epochs after which the worst configurations leave.
        cuts: For splits of which each seed cuts its own validation rows, what repeats the cuts (`Rotation.plain`).
        sha256: Fingerprints of what the plan is for: "runs", "base", "data", and "cuts" where there are any.
        made_with: What the last bits of the results depend on.
        notes: What the user should know of the packs.
        probes: What steps take in memory, as far as it was measured, so that a resumed run doesn't measure it again.
    """

    packs: list[list[str]]
    memory: dict[str, int]
    limit: int | None
    base_bytes: int
    rungs: list[int]
    cuts: dict[str, dict[str, Any]]
    sha256: dict[str, str]
    made_with: dict[str, str]
    notes: list[str]
    probes: Probes = field(default_factory=Probes)


def plan_packs(runs: Sequence[Run]) -> list[list[Run]]:
    """Cut runs into packs: runs share one when they read the same data in batches of one size, have one optimiser, and
    are all low-rank or all train whole layers (whose products have nothing in common)."""
    packs: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        optimiser = optimiser_of(run.training.optimiser).name
        packs.setdefault((run.data, run.training.batch_size, optimiser, run.method), []).append(run)
    return list(packs.values())


def make_plan(
    model: nn.Module,
    runs: Sequence[Run],
    problem: Problem,
    rungs: Sequence[int],
    memory: int | None = None,
    probes: Probes | None = None,
    at_once: int = 1,
    in_one_memory: int = 1,
    measure: Measure | None = None,
    known: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a sweep.

    Args:
        model: The base.
        runs: What to train.
        problem: Data, loss and metric.
        rungs: Epochs after which the worst configurations leave.
        memory: Bytes that a pack may need on top of the base; by default nine tenths of what the device has free.
        probes: As `bytes_of_runs` takes it.
        at_once: Packs that train at the same time: large ones are cut where there would be fewer.
        in_one_memory: Those of them that share the memory of one device.
        measure: As `bytes_of_runs` takes it.
        known: As `fingerprints` takes it.
    """
    probes = Probes() if probes is None else probes
    needed = bytes_of_runs(model, runs, problem, probes, measure)
    limit = limit_of(model, memory, in_one_memory)
    planned, notes = apart(model, plan_packs(runs))
    fitting = [cut for pack in planned for cut in cut_to_fit(pack, lambda run: needed[run.name], limit)]
    numbers = {run.name: resolve(model, run.member).parameter_count() for run in runs}
    packs = spread(fitting, at_once, lambda run: numbers[run.name], lambda run: run.member.seed)
    return Plan(
        packs=[[run.name for run in pack] for pack in packs],
        memory=needed,
        limit=limit,
        base_bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        rungs=list(rungs),
        cuts={run.data: r.plain() for run in runs if (r := problem.rotation_of(run.data)) is not None},
        sha256=fingerprints(model, runs, problem, known),
        made_with=surroundings(model),
        notes=notes,
        probes=dict(probes),
    )


def fingerprints(
    model: nn.Module, runs: Sequence[Run], problem: Problem, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The fingerprints that a plan is for.

    Args:
        model: The base.
        runs: What is trained.
        problem: Data, loss and metric.
        known: The fingerprints of "base" and "data", where they have been taken before.
    """
    found = {
        "runs": hashlib.sha256("\n".join(map(_settings, runs)).encode()).hexdigest(),
        **(known or fingerprints_of(model, problem)),
    }
    cuts = _cuts(runs, problem)
    return {**found, "cuts": fingerprint(cuts)} if cuts else found


def fingerprints_of(model: nn.Module, problem: Problem) -> dict[str, str]:
    """The fingerprints of the base and the data, which all plans of a sweep share."""
    return {"base": fingerprint(model.state_dict()), "data": fingerprint(_named(problem))}


def run_fingerprint(run: Run) -> str:
    """SHA-256 of all settings of a run, its start included."""
    return hashlib.sha256(_settings(run).encode()).hexdigest()


def surroundings(model: nn.Module) -> dict[str, str]:
    """The software and hardware that the last bits of the results depend on."""
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "device": str(next(model.parameters()).device),
    }


def write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan into the folder of checkpoints.

    Raises:
        OutputError: It can't be written.
    """
    write_checked(folder / FILE, FORMAT, asdict(plan))


def read_plan(folder: Path) -> Plan:
    """Read what `write_plan` wrote.

    Raises:
        CheckpointError: There is none, it is damaged, or it is none of this version's.
    """
    return Plan(**read_checked(folder / FILE, FORMAT))


WHAT_DIFFERS = {
    "runs": "Its runs have other settings",
    "base": "The base has other weights",
    "data": "The data are others",
    "cuts": "Its seeds validate on other rows",
}


@runtime_checkable
class Planned(Protocol):
    """A plan, or a unit of it."""

    @property
    def sha256(self) -> dict[str, str]: ...
    @property
    def made_with(self) -> dict[str, str]: ...


def check_plan(plan: Planned, sha256: Mapping[str, str], made_with: Mapping[str, str], folder: Path) -> list[str]:
    """Compare a plan that was read with the present state.

    Args:
        plan: The plan.
        sha256: From `fingerprints`.
        made_with: From `surroundings`.
        folder: Where the plan was read.

    Returns:
        What may change the last bits of the results, in words.

    Raises:
        CheckpointError: It is for other runs, another base or other data.
    """
    for key, words in WHAT_DIFFERS.items():
        if plan.sha256.get(key) != sha256.get(key):
            raise CheckpointError(
                f"The run in {folder} can't be resumed. {words} now: SHA-256 {sha256.get(key, 'none')[:12]}, and "
                f"{plan.sha256.get(key, 'none')[:12]} when it began."
            )
    changed = [key for key, value in made_with.items() if plan.made_with.get(key) != value]
    if not changed:
        return []
    before, after = (", ".join(f"{key} {found.get(key)}" for key in changed) for found in (plan.made_with, made_with))
    return [f"The run began with {before} and continued with {after}; the last bits of its results may depend on that."]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bits of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def _named(problem: Problem) -> dict[str, Tensor]:
    sets = {
        f"{key}/{part}": getattr(splits, part)
        for key, splits in problem.splits.items()
        for part in ("train", "validation", "test")
    }
    sets |= {f"other/{name}": data for name, data in problem.other_tests.items()}
    return {f"{name}/{i}": tensor for name, data in sets.items() for i, tensor in enumerate(own_tensors(data))}


def _cuts(runs: Sequence[Run], problem: Problem) -> dict[str, Tensor]:
    """The rows that each seed of the runs trains and validates on, where it has its own."""
    found: dict[str, Tensor] = {}
    for run in runs:
        rotation = problem.rotation_of(run.data)
        if rotation is not None:
            cut, name = rotation.cut(run.member.seed), f"{run.data}/{run.member.seed}"
            found |= {f"{name}/train": cut.train, f"{name}/validation": cut.validation}
    return found


def _settings(run: Run) -> str:
    """A run in words that are the same in every process."""
    lora = run.member.lora
    plain = {} if lora is None else {f.name: _plain(getattr(lora, f.name)) for f in fields(lora)}
    start = fingerprint(run.start)
    member = (
        run.member.seed,
        run.member.modules_to_save,
        run.member.head_lr_multiplier,
        run.member.head_lr_multiplier_for,
    )
    training = ", ".join(f"{name}={value!r}" for name, value in run.training.record().items())
    parts = (run.name, run.configuration, run.method, run.data, *member, f"Training({training})", plain)
    return " ".join(map(str, (*parts, start)))


def _plain(value: Any) -> Any:
    # A function's repr holds an address; its name is all that can be compared.
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return sorted(value, key=str) if isinstance(value, set | frozenset) else value
