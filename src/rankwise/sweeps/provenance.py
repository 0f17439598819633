"""Where results come from: fingerprints of data and settings, versions, what was tried."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from rankwise.sweeps.plan.plan import fingerprint
from rankwise.sweeps.problem import Problem, Run
from rankwise.train.data.tensors import count_rows, tensors_of


def data_of(problem: Problem, which: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each split, as `results.json` has them."""
    splits = problem.splits[which]
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: {
            "n": count_rows(data, name),
            "sha256": fingerprint({str(i): tensor for i, tensor in enumerate(tensors_of(data))}),
        }
        for name, data in parts.items()
    }


def grid_of(runs: Sequence[Run]) -> dict[str, Any]:
    """What is tried, as `results.json` tells it."""
    rates = {method: sorted({run.training.lr for run in runs if run.method == method}) for method in ("lora", "full")}
    return {
        "ranks": sorted({run.r for run in runs if run.r is not None}),
        "lrs": rates["lora"],
        "baseline_lrs": rates["full"],
        "seeds": sorted({run.member.seed for run in runs}),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: metadata.version(name) for name in ("rankwise", "torch", "numpy", "safetensors")}
    return {"python": platform.python_version(), "platform": sys.platform, **packages}
