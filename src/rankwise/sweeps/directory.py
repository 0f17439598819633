"""The run directory: where a sweep's results lie, and when they may be written there."""

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.errors import CheckpointError, OutputError
from rankwise.sweeps.adapters import Adapters
from rankwise.sweeps.plan import FILE as PLAN
from rankwise.sweeps.problem import Swept
from rankwise.train.outcome import Point
from rankwise.writing import replacing, write_durably

MARK = "results.json"
TRAINED_ON = "trained_on.npy"
"""Checksums of the inputs that the runs were trained on, where the task writes them."""

OWN_FILES = (MARK, "config.yaml", "curves.csv", "predictions.npz", TRAINED_ON, "adapters", "base")
STAGED = ".writing."
"""Beginning of the name of the folder in which results are written before they are put in place."""

UNFINISHED = "checkpoints"
"""The folder with all that is needed to go on with a run: configuration, base, plan, checkpoints. It is removed when
the results are in place; until then earlier results beside it are as they were."""

BASE_FILE = Path("base", "model.safetensors")


def check_directory(directory: Path, overwrite: bool) -> None:
    """Refuse a place for results that holds something else; nothing is made or changed.

    Raises:
        OutputError: It is a file or can't be written to, holds results and `overwrite` is false, or holds something
            that is no results.
    """
    checked_place(directory)
    if not directory.exists():
        return
    if (directory / MARK).exists() or can_resume(directory):
        if not overwrite:
            held = (
                f"an unfinished run; go on with it by --resume {directory}, give another directory with --out, or "
                "--overwrite to start anew"
                if can_resume(directory)
                else "results already; give another directory with --out, or --overwrite to replace them"
            )
            raise OutputError(f"{directory} holds {held}.")
    elif any(not path.name.startswith(STAGED) and path.name != UNFINISHED for path in directory.iterdir()):
        raise OutputError(
            f"{directory} holds files that are no results of rankwise; give an empty or a new directory with --out."
        )


def checked_place(directory: Path) -> None:
    """Refuse a place where nothing can be written.

    Raises:
        OutputError: It is a file, or can't be written to.
    """
    # Known now, or else only after all the training.
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; give a directory with --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} can't be written to; give another directory with --out.")


def can_resume(directory: Path) -> bool:
    """Whether a run in this directory has begun and not finished."""
    return (directory / UNFINISHED / PLAN).exists()


def begin_run(directory: Path, config: str, about: Mapping[str, str], base: Mapping[str, torch.Tensor] | None) -> Path:
    """Make the folder that a run goes on from; one of an earlier unfinished run is replaced.

    Args:
        directory: The run directory.
        config: The complete configuration, YAML.
        about: What the results tell of the run's beginning.
        base: The base's weights, where the task has made the base itself.

    Returns:
        The folder, for plan and checkpoints.

    Raises:
        OutputError: It can't be written.
    """
    from safetensors.torch import save

    folder = directory / UNFINISHED
    try:
        _remove(folder)
    except OSError as error:
        raise OutputError(f"{folder} can't be removed ({error.strerror or error}).") from error
    write_durably(folder / "config.yaml", config.encode())
    write_durably(folder / "about.json", json.dumps(about).encode())
    if base is not None:
        write_durably(folder / BASE_FILE, save({key: value.contiguous().cpu() for key, value in base.items()}))
    return folder


def read_begun(directory: Path) -> tuple[dict[str, str], dict[str, torch.Tensor] | None]:
    """What `begin_run` was given: about the run, and the base.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = directory / UNFINISHED
    try:
        about = json.loads((folder / "about.json").read_bytes())
        base = load((folder / BASE_FILE).read_bytes()) if (folder / BASE_FILE).exists() else None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"The unfinished run in {directory} is damaged ({error}); start it anew.") from error
    return about, base


def end_run(directory: Path) -> None:
    """Remove what the run went on from, now that its results are in place."""
    _remove(directory / UNFINISHED)


def write_run(
    directory: Path,
    results: Mapping[str, Any],
    config: str,
    swept: Swept,
    adapters: Adapters,
    keep_base: bool,
) -> None:
    """Write everything but the report. All of it is written beside first, so that a full disk leaves earlier results as
    they were; `results.json` is put in place last.

    Args:
        directory: As `check_directory` has allowed it; earlier results in it are replaced.
        results: The content of `results.json`.
        config: The complete configuration, YAML.
        swept: Curves, predictions, adapters.
        adapters: How those of the finished runs are written.
        keep_base: Whether the base's weights are written too.

    Raises:
        OutputError: The directory can't be written.
    """
    staged = directory / f"{STAGED}{os.getpid()}"
    try:
        _write_files(staged, results, config, swept, adapters, keep_base)
        # The old mark goes first and the new one comes last, so that it never stands beside files of another run.
        for name in OWN_FILES:
            _remove(directory / name)
        for name in reversed(OWN_FILES):
            if (staged / name).exists():
                os.replace(staged / name, directory / name)
    except OSError as error:
        raise OutputError(f"{directory} can't be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _write_files(
    directory: Path,
    results: Mapping[str, Any],
    config: str,
    swept: Swept,
    adapters: Adapters,
    keep_base: bool,
) -> None:
    if keep_base:
        from safetensors.torch import save_file

        base = adapters.model.state_dict()
        with replacing(directory / BASE_FILE) as temporary:
            save_file({key: value.contiguous().cpu() for key, value in base.items()}, temporary, {"format": "pt"})
    adapters.write(swept, directory)
    _write_curves(directory / "curves.csv", swept.curve)
    with replacing(directory / "predictions.npz") as temporary:
        arrays = {f"validation/{name}": scores.validation for name, scores in swept.scores.items()}
        arrays |= {f"test/{name}": scores.test for name, scores in swept.scores.items()}
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    for name, text in (("config.yaml", config), (MARK, json.dumps(results, indent=1, allow_nan=False) + "\n")):
        with replacing(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _write_curves(path: Path, points: Sequence[Point]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Point)])
        writer.writerows(astuple(point) for point in points)
