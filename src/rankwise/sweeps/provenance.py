"""The origin of results: fingerprints of data and settings, versions, the grid."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from msgspec import UNSET

from rankwise.results.origin import BaseInfo, DataInfo, Grid, Published, SearchedRate, SplitSize
from rankwise.sweeps.plan.plan import fingerprint
from rankwise.sweeps.problem import Problem, Run
from rankwise.train.data.tensors import Data, count_rows, tensors_of


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of results: the fields of `Results` that don't depend on the runs, by the same names."""

    task: str
    command: str
    started: str
    config_hash: str
    seconds: float | None
    versions: Mapping[str, str | None]
    device: str
    data: DataInfo
    grid: Grid
    base: BaseInfo
    published: Published | None = None
    plan: Mapping[str, Any] | None = None


def data_info(problem: Problem, which: str) -> DataInfo:
    """Size and SHA-256 of each split."""
    splits = problem.splits[which]

    def size(data: Data, name: str) -> SplitSize:
        content = {str(i): tensor for i, tensor in enumerate(tensors_of(data))}
        return SplitSize(n=count_rows(data, name), sha256=fingerprint(content))

    return DataInfo(
        train=size(splits.train, "train"),
        validation=size(splits.validation, "validation"),
        test=size(splits.test, "test"),
    )


def grid_of(runs: Sequence[Run], searched: Sequence[SearchedRate], more: Mapping[str, Any]) -> Grid:
    """The grid of the sweep.

    Args:
        runs: Those that count.
        searched: What a search for learning rates tried.
        more: What the task adds, by the names of the file.
    """
    rates = {method: sorted({run.training.lr for run in runs if run.method == method}) for method in ("lora", "full")}
    more = dict(more)
    return Grid(
        ranks=more.pop("ranks", sorted({run.r for run in runs if run.r is not None})),
        lrs=rates["lora"],
        baseline_lrs=rates["full"],
        seeds=more.pop("seeds", sorted({run.member.seed for run in runs})),
        search=[*searched] or UNSET,
        others=more,
    )


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: metadata.version(name) for name in ("rankwise", "torch", "numpy", "safetensors")}
    return {"python": platform.python_version(), "platform": sys.platform, **packages}
