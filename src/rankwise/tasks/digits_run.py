"""`rankwise digits` from options to a run directory."""

import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import ConfigError, OutputError
from rankwise.report import write_report
from rankwise.sweeps.directory import (
    UNFINISHED,
    begin_run,
    check_directory,
    checked_place,
    end_run,
    read_begun,
    write_run,
)
from rankwise.sweeps.measure import measure_base
from rankwise.sweeps.plan import fingerprint
from rankwise.sweeps.record import Results, make_results
from rankwise.sweeps.run import run_sweep
from rankwise.tasks.digits import (
    PUBLISHED_BASELINE,
    base_from,
    make_problem,
    plan_runs,
    pretrain,
    published_table,
)
from rankwise.tasks.digits_config import config_of
from rankwise.tasks.mnist import load_digits_data
from rankwise.tasks.options import DigitsOptions
from rankwise.train.checkpoints import Every
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
    options: DigitsOptions,
    *,
    config: str,
    command: str,
    progress: Progress,
    overwrite: bool = False,
    resume: bool = False,
    every: Every | None = None,
) -> tuple[Results, list[Path]]:
    """Run the experiment and write its run directory.

    Args:
        options: The settings.
        config: The complete configuration as YAML, to be kept beside the results.
        command: The command line, likewise.
        progress: Where training is shown.
        overwrite: Whether earlier results may be replaced.
        resume: Whether to go on with the unfinished run in the directory; the options are its own.
        every: How often a checkpoint is written.

    Returns:
        The content of `results.json`, and the files of the report.

    Raises:
        RankwiseError: Something in the options, the data or the place for results can't be used.
        KeyboardInterrupt: Interrupted before any run had finished; there are no results yet.
    """
    if resume:
        checked_place(options.out)
    else:
        check_directory(options.out, overwrite)
    device = find_device(options.device)
    about = {"command": command, "started": datetime.now(UTC).isoformat(timespec="seconds")}
    clock = time.perf_counter()
    raw = load_digits_data(options.data)
    problem = make_problem(raw, device)
    runs = plan_runs(options)
    if resume:
        about, state = read_begun(options.out)
        model = base_from(state or {}, device)
    else:
        progress.message(f"Pretraining the base on the digits 0-4 ({len(problem.splits['old'].train[0]):,} images)")
        model = pretrain(problem, options)
        begin_run(options.out, config, about, model.state_dict())
    new, old = problem.splits["new"].test, problem.splits["old"].test
    base_metrics = {"accuracy": measure_base(model, problem, new), "accuracy_on_0_4": measure_base(model, problem, old)}
    before = fingerprint(model.state_dict())
    kept = options.out / UNFINISHED
    swept = run_sweep(
        model, runs, problem, progress, rungs=options.rungs or (), checkpoints=kept, every=every, resume=resume
    )
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
    after = fingerprint(model.state_dict())
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
            **about,
            "config_hash": hashlib.sha256(json.dumps(config_of(options), sort_keys=True).encode()).hexdigest(),
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
        try:
            write_run(options.out, results, config, swept, model.state_dict(), folders, BASE_NAME)
            files = write_report(results, options.out)
        except OutputError as error:
            how = f"make room and go on with: rankwise digits --resume {shlex.quote(str(options.out))}"
            raise OutputError(f"{error} What has been trained is kept in {kept}; {how}") from error
        if results["complete"]:
            end_run(options.out)
        return results, files


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


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: metadata.version(name) for name in ("rankwise", "torch", "numpy", "safetensors")}
    return {"python": platform.python_version(), "platform": sys.platform, **packages}
