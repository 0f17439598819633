"""The run directory: where a sweep's results lie, and when they may be written there."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np
import torch

from rankwise.errors import CheckpointError, OutputError, option
from rankwise.locking import locked
from rankwise.results import Results, plain
from rankwise.shown import csv_cell
from rankwise.sweeps.problem import SweepState
from rankwise.sweeps.storage.adapters import Adapters
from rankwise.sweeps.storage.owned import (
    ABOUT,
    ABOUT_FORMAT,
    ADAPTERS,
    BASE_FILE,
    BEST,
    EARLIER,
    PLACING,
    PLACING_FORMAT,
    REPORT,
    RESULTS,
    RUN_MARK,
    SHIP,
    STAGED,
    UNFINISHED,
    clear_staging,
    cut_folders,
    foreign,
    holds_results,
    holds_unfinished,
    named_adapters,
    remove,
    remove_results,
    remove_unfinished,
)
from rankwise.sweeps.storage.working_copy import copied
from rankwise.train.outcome import EpochPoint
from rankwise.writing import plain_mode, read_checked, read_regular, replacing, write_checked, write_durably

OWN_FILES = (RUN_MARK, *RESULTS, ADAPTERS, BASE_FILE.parent.name)


def check_directory(directory: Path, overwrite: bool) -> None:
    """Refuse a place for results that holds something else; nothing is made or changed.

    Raises:
        OutputError: It is a file or can't be written to, holds results or an unfinished run and `overwrite` is false,
            or holds something that a run would replace and that is not Rankwise's.
    """
    checked_place(directory)
    check_foreign(directory)
    if overwrite or not directory.exists():
        return
    another = f"give another directory with {option('out')}"
    if holds_unfinished(directory):
        raise OutputError(
            f"{directory} holds an unfinished run; resume it with {_resume(directory)}, {another}, or "
            f"{_overwrite()} to start again."
        )
    if holds_results(directory):
        raise OutputError(f"{directory} holds results already; {another}, or {_overwrite()} to replace them.")


def check_foreign(directory: Path) -> None:
    """Refuse a directory in which a run would replace what is not Rankwise's.

    Raises:
        OutputError: There is such a file or folder.
    """
    other = next(foreign(directory), None)
    if other is not None:
        raise OutputError(
            f"{directory} holds {other.relative_to(directory)}, which is no file of a run of rankwise; give an "
            f"empty or a new directory with {option('out')}."
        )


def checked_place(directory: Path) -> None:
    """Refuse a place where nothing can be written.

    Raises:
        OutputError: It is a file, or can't be written to.
    """
    # Known now, or else only after all the training.
    there = next(place for place in (directory, *directory.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        what = "a file" if there.exists() else "a link to nothing"
        raise OutputError(f"{there} is {what}; give a directory with {option('out')}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} can't be written to; give another directory with {option('out')}.")


@contextmanager
def held(directory: Path, *, overwrite: bool, resume: bool) -> Generator[None]:
    """Check a directory, and hold it for one run from now on to the end.

    Args:
        directory: The run directory; made if need be, and removed again if nothing was written to it.
        overwrite: Whether earlier results may be replaced.
        resume: Whether the unfinished run in it is continued.

    Raises:
        OutputError: Results can't be written there, or another run holds it.
    """

    def check() -> None:
        if resume:
            checked_place(directory)
            check_foreign(directory)
        else:
            check_directory(directory, overwrite)

    check()
    with locked(directory):
        check()  # a run that held it may just have ended
        clear_staging(directory)
        yield


def can_resume(directory: Path) -> bool:
    """Whether a run in this directory has begun and not finished."""
    return holds_unfinished(directory)


def _resume(directory: Path) -> str:
    return f"--resume {directory}" if option("x") == "--x" else "resume=True"


def _overwrite() -> str:
    return option("overwrite") if option("x") == "--x" else "overwrite=True"


def begin_run(
    directory: Path,
    config: str,
    about: Mapping[str, str],
    base: Mapping[str, torch.Tensor] | None,
    earlier: Mapping[str, bytes] | None = None,
) -> Path:
    """Make the folder that a run is resumed from; one of an earlier unfinished run is replaced.

    Args:
        directory: The run directory.
        config: The complete configuration, YAML.
        about: What the results tell of the run's beginning.
        base: The base's weights, where the task has made the base itself.
        earlier: Files of the finished results that the run extends, by name: what it needs of them when they are
            being replaced.

    Returns:
        The folder, for plan and checkpoints.

    Raises:
        OutputError: It can't be written.
    """
    from safetensors.torch import save

    folder = directory / UNFINISHED
    try:
        remove_unfinished(directory)
    except OSError as error:
        raise OutputError(f"{folder} can't be removed ({error.strerror or error}).") from error
    files = {"config.yaml": config.encode()}
    if base is not None:
        files[str(BASE_FILE)] = save({key: value.contiguous().cpu() for key, value in base.items()})
    files |= {f"{EARLIER}/{name}": data for name, data in (earlier or {}).items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_checked(folder / ABOUT, ABOUT_FORMAT, {"about": dict(about), "sha256": sums})
    for name, data in files.items():
        write_durably(folder / name, data)
    return folder


def read_begun(directory: Path) -> tuple[dict[str, str], dict[str, torch.Tensor] | None, dict[str, bytes]]:
    """The arguments of `begin_run`: facts of the run, the base, and files of the results that it extends.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    from safetensors.torch import load

    folder = directory / UNFINISHED
    begun = read_checked(folder / ABOUT, ABOUT_FORMAT)
    files: dict[str, bytes] = {}
    for name, sha256 in begun["sha256"].items():
        try:
            files[name] = read_regular(folder / name)
        except OSError as error:
            raise CheckpointError(
                f"The unfinished run in {directory} is damaged: can't read {name} ({error.strerror}); start it again."
            ) from error
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise CheckpointError(
                f"The unfinished run in {directory} is damaged: {name} does not match its checksum; start it again."
            )
    base = files.get(str(BASE_FILE))
    earlier = {name.removeprefix(f"{EARLIER}/"): data for name, data in files.items() if name.startswith(f"{EARLIER}/")}
    return begun["about"], None if base is None else load(base), earlier


def end_run(directory: Path) -> None:
    """Remove what the run was resumed from, now that its results are in place."""
    remove_unfinished(directory)


def write_run(
    directory: Path,
    results: Results,
    config: str,
    swept: SweepState,
    adapters: Adapters,
    keep_base: bool,
    *,
    extends: bool = False,
) -> None:
    """Write everything but the report. All of it is written to a folder in the directory first, so that a full disk
    leaves earlier results as they were; `results.json` is put in place last.

    Args:
        directory: As `check_directory` has allowed it; earlier results in it are replaced.
        results: The content of `results.json`.
        config: The complete configuration, YAML.
        swept: Curves, predictions, adapters.
        adapters: How those of the finished runs are written.
        keep_base: Whether the base's weights are written too.
        extends: Whether the directory holds the results of a part of these runs: their adapters, the base and
            whatever is not written again stay as they are.

    Raises:
        OutputError: The directory can't be written, or something that is not Rankwise's has come into it.
    """
    staged = directory / f"{STAGED}{os.getpid()}"
    placing = directory / UNFINISHED / PLACING
    try:
        _write_files(staged, results, config, swept, adapters, keep_base)
        check_foreign(directory)
        cut_before = cut_folders(directory)
        new = [path.name for path in (staged / ADAPTERS).iterdir()] if (staged / ADAPTERS).is_dir() else []
        # A run killed from here on finds what it has placed, what was to go and the earlier report, when it is resumed.
        ours = dict.fromkeys((*OWN_FILES, *REPORT), ())
        write_checked(placing, PLACING_FORMAT, {**ours, ADAPTERS: [*named_adapters(directory), *new]})
        if not extends:
            # The old mark goes first and the new one comes last, so it never stands next to files of another run.
            remove_results(directory)
        copied(directory)
        if extends:
            # The earlier results stay whole throughout: what they name is there, or replaced by a file with more in it.
            _add_adapters(staged, directory, new)
        for name in reversed(OWN_FILES):
            if (staged / name).exists():
                os.replace(staged / name, directory / name)
        _link_best(directory, results)
        for name in cut_before - cut_folders(directory) if extends else ():
            remove(directory / ADAPTERS / name)  # another adapter is the one to ship now
        placing.unlink()
        if not any(placing.parent.iterdir()):
            placing.parent.rmdir()
    except OSError as error:
        raise OutputError(f"{directory} can't be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _add_adapters(staged: Path, directory: Path, names: Sequence[str]) -> None:
    """Move further adapters into place; those that a killed run has placed are replaced."""
    (directory / ADAPTERS).mkdir(exist_ok=True)
    for name in names:
        if os.path.lexists(directory / ADAPTERS / name):
            remove(directory / ADAPTERS / name)
        os.replace(staged / ADAPTERS / name, directory / ADAPTERS / name)
    if names:
        (staged / ADAPTERS).rmdir()


def _link_best(directory: Path, results: Results) -> None:
    """Point `best` to the recommended adapter and `ship` to the one to ship; remove them while nothing is decided."""
    ship = results.compressed.ship if results.compressed else None
    for name, answer in ((BEST, results.answer), (SHIP, ship)):
        (directory / name).unlink(missing_ok=True)
        if answer is None or answer.verdict == "undecided" or answer.adapter is None:
            continue
        with suppress(OSError):  # no links on this file system
            (directory / name).symlink_to(answer.adapter, target_is_directory=True)


def _write_files(
    directory: Path,
    results: Results,
    config: str,
    swept: SweepState,
    adapters: Adapters,
    keep_base: bool,
) -> None:
    if keep_base:
        from safetensors.torch import save_file

        base = adapters.model.state_dict()
        with replacing(directory / BASE_FILE) as temporary:
            save_file({key: value.contiguous().cpu() for key, value in base.items()}, temporary, {"format": "pt"})
            plain_mode(temporary)
    adapters.write(swept, directory)
    _write_curves(directory / "curves.csv", swept.curve)
    with replacing(directory / "predictions.npz") as temporary:
        arrays = {f"validation/{name}": scores.validation for name, scores in swept.scores.items()}
        arrays |= {f"test/{name}": scores.test for name, scores in swept.scores.items()}
        for name, scores in () if swept.compressed is None else swept.compressed.scores.items():
            arrays |= {f"compressed/validation/{name}": scores.validation, f"compressed/test/{name}": scores.test}
        for name, scores in swept.scores.items():
            optional = {
                f"deciding/{name}": scores.deciding,
                f"rows/{name}": scores.rows,
                f"loss/{name}": scores.losses,
            }
            arrays |= {key: values for key, values in optional.items() if values is not None}
            arrays |= {f"other/{test}/{name}": values for test, values in scores.other.items()}
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    for name, text in (
        ("config.yaml", config),
        (RUN_MARK, json.dumps(plain(results), indent=1, allow_nan=False) + "\n"),
    ):
        with replacing(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _write_curves(path: Path, points: Sequence[EpochPoint]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(EpochPoint)])
        writer.writerows(map(csv_cell, astuple(point)) for point in points)
