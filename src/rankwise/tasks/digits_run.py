"""`rankwise digits` from options to a run directory."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rankwise.errors import ConfigError
from rankwise.report import write_report
from rankwise.sweep.directory import check_directory, write_run
from rankwise.sweep.record import Results, make_results
from rankwise.sweep.run import measure_base, run_sweep
from rankwise.tasks.digits import (
    PUBLISHED_BASELINE,
    make_problem,
    plan_runs,
    pretrain,
    published_table,
)
from rankwise.tasks.digits_config import config_of
from rankwise.tasks.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.live import Progress
from rankwise.writing import interrupts_ignored

BASE_NAME = "../../base"
"""What an adapter calls its base: the folder that lies beside `adapters/` in the run directory."""


def find_device(name: str) -> torch.device:
    """The device by its name.

    Raises:
        ConfigError: There is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        known = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ConfigError(f'There is no device "{name}" here; there is {known}.') from None
    return device


def run_digits(
    options: DigitsOptions, *, config: str, command: str, progress: Progress, overwrite: bool
) -> tuple[Results, list[Path]]:
    """Run the experiment and write its run directory.

    Args:
        options: The settings.
        config: The complete configuration as YAML, to be kept beside the results.
        command: The command line, likewise.
        progress: Where training is shown.
        overwrite: Whether earlier results may be replaced.

    Returns:
        The content of `results.json`, and the files of the report.

    Raises:
        RankwiseError: Something in the options, the data or the place for results can't be used.
        KeyboardInterrupt: Interrupted before any run had finished; nothing has been written.
    """
    check_directory(options.out, overwrite)
    device = find_device(options.device)
    started = datetime.now(UTC)
    clock = time.perf_counter()
    raw = load_digits_data(options.data)
    problem = make_problem(raw, device)
    runs = plan_runs(options)
    progress.message(f"Pretraining the base on the digits 0-4 ({len(problem.splits['old'].train[0]):,} images)")
    model = pretrain(problem, options)
    new, old = problem.splits["new"].test, problem.splits["old"].test
    base_metrics = {"accuracy": measure_base(model, problem, new), "accuracy_on_0_4": measure_base(model, problem, old)}
    before = fingerprint(model)
    swept = run_sweep(model, runs, problem, progress)
    progress.close()
    if not (swept.complete or swept.scores):
        raise KeyboardInterrupt  # nothing worth writing; earlier results stay as they are
    published = options.protocol == "published"
    parameters = sum(p.numel() for p in model.parameters())
    folders = {
        run.name: f"adapters/{run.name}"
        for run in runs
        if run.method == "lora" and run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"
    }
    after = fingerprint(model)
    off = measure_base(model, problem, old)
    swept.notes.append(_untouched(before == after and off == base_metrics["accuracy_on_0_4"], off))
    results = make_results(
        swept,
        problem,
        base={
            "name": "base",
            "sha256": before,
            "parameters": parameters,
            "metric": base_metrics["accuracy"],
            "accuracy_on_0_4": base_metrics["accuracy_on_0_4"],
        },
        about={
            "task": "digits",
            "command": command,
            "config_hash": hashlib.sha256(json.dumps(config_of(options), sort_keys=True).encode()).hexdigest(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "versions": versions(),
            "device": str(device),
            "data": {"name": options.data, **raw.fingerprints()},
            "published": published_table() if published else None,
            "grid": {
                "ranks": list(options.ranks),
                "lrs": sorted({run.training.lr for run in runs if run.method == "lora"}),
                "baseline_lrs": sorted({run.training.lr for run in runs if run.method == "full"}),
                "seeds": list(options.seeds),
                "protocol": options.protocol,
            },
        },
        comparable=[run.configuration for run in runs if run.data == "new"],
        relative_to=_published_baseline(parameters) if published else None,
        tolerance=options.tolerance,
        adapters=folders,
    )
    with interrupts_ignored():
        write_run(options.out, results, config, swept, model.state_dict(), folders, BASE_NAME)
        return results, write_report(results, options.out)


def _untouched(same: bool, off: float) -> str:
    if same:
        return f"With the adapter off the base is what it was, bit for bit: {off:.4f} on the digits 0-4."
    return "The base has changed in training: this is a fault of the program, please report it."


def _published_baseline(parameters: int) -> Mapping[str, Any]:
    return {
        "label": "the published baseline",
        "metric": PUBLISHED_BASELINE[1],
        "trainable_parameters": parameters,
    }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bits of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: metadata.version(name) for name in ("rankwise", "torch", "numpy", "safetensors")}
    return {"python": platform.python_version(), "platform": sys.platform, **packages}
