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

from rankwise.errors import OutputError
from rankwise.files import write_adapter
from rankwise.sweep.run import Swept
from rankwise.train.outcome import Point
from rankwise.writing import replacing

MARK = "results.json"
OWN_FILES = (MARK, "config.yaml", "curves.csv", "predictions.npz", "adapters", "base")
STAGED = ".writing."
"""Beginning of the name of the folder in which results are written before they are put in place."""


def check_directory(directory: Path, overwrite: bool) -> None:
    """Refuse a place for results that holds something else; nothing is made or changed.

    Raises:
        OutputError: It is a file or can't be written to, holds results and `overwrite` is false, or holds something
            that is no results.
    """
    # Known now, or else only after all the training.
    there = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; give a directory with --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} can't be written to; give another directory with --out.")
    if there != directory:
        return
    if (directory / MARK).exists():
        if not overwrite:
            raise OutputError(
                f"{directory} holds results already; give another directory with --out, or --overwrite to replace them."
            )
    elif any(not path.name.startswith(STAGED) for path in directory.iterdir()):
        raise OutputError(
            f"{directory} holds files that are no results of rankwise; give an empty or a new directory with --out."
        )


def write_run(
    directory: Path,
    results: Mapping[str, Any],
    config: str,
    swept: Swept,
    base: Mapping[str, torch.Tensor] | None,
    folders: Mapping[str, str],
    base_name: str,
) -> None:
    """Write everything but the report. All of it is written beside first, so that a full disk leaves earlier results as
    they were; `results.json` is put in place last.

    Args:
        directory: As `check_directory` has allowed it; earlier results in it are replaced.
        results: The content of `results.json`.
        config: The complete configuration, YAML.
        swept: Curves, predictions, adapters.
        base: The base's weights, where the task has made the base itself.
        folders: Run -> folder of its adapter, relative to the directory.
        base_name: What the adapters call their base.

    Raises:
        OutputError: The directory can't be written.
    """
    staged = directory / f"{STAGED}{os.getpid()}"
    try:
        _write_files(staged, results, config, swept, base, folders, base_name)
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
    base: Mapping[str, torch.Tensor] | None,
    folders: Mapping[str, str],
    base_name: str,
) -> None:
    if base is not None:
        from safetensors.torch import save_file

        with replacing(directory / "base" / "model.safetensors") as temporary:
            save_file({key: value.contiguous().cpu() for key, value in base.items()}, temporary, {"format": "pt"})
    for run in swept.runs:
        outcome = swept.outcomes.get(run.name)
        if run.name in folders and outcome is not None and run.member.lora is not None:
            modules = [key.removesuffix(".A") for key in outcome.state if key.endswith(".A")]
            pairs = {name: (outcome.state[f"{name}.A"], outcome.state[f"{name}.B"]) for name in modules}
            write_adapter(directory / folders[run.name], run.member.lora, pairs, base_name=base_name)
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
