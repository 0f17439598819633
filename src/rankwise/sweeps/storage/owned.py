"""Rankwise's own files in a run directory: nothing else is ever replaced or removed.

Files are known by their content where there is one to look at: `results.json` and the files of an unfinished run have a
format. Everything else belongs to them by name.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from rankwise.errors import CheckpointError
from rankwise.locking import LOCK
from rankwise.sweeps.plan.plan import FILE as PLAN
from rankwise.writing import read_checked

RUN_MARK = "results.json"
TRAINED_ON = "trained_on.npy"
"""Checksums of the inputs that the runs were trained on, where the task writes them."""

BEST = "best"
"""A link to the recommended adapter, where one is shown to do the job."""

SHIP = "ship"
"""A link to the smallest adapter that is shown to do the job, those cut to a smaller rank included."""

RESULTS = ("config.yaml", "curves.csv", "predictions.npz", TRAINED_ON, BEST, SHIP)
ADAPTERS = "adapters"
BASE_FILE = Path("base", "model.safetensors")
REPORT = (
    "table.md",
    "results.csv",
    "report.html",
    *(
        f"{name}.{kind}"
        for name in ("accuracy_vs_parameters", "relative", "curves", "subspaces")
        for kind in ("png", "svg")
    ),
)

STAGED = ".writing."
"""Beginning of the name of the folder in which results are written before they are put in place."""

UNFINISHED = "checkpoints"
"""The folder with all that a run is resumed from: configuration, base, plan, checkpoints. It is removed when the
results are in place; until then earlier results in the run directory are as they were."""

ABOUT, ABOUT_FORMAT = "about.json", "rankwise-run-1"
"""The first file of an unfinished run, and the last one to go."""

EARLIER = "earlier"
"""In the folder of an unfinished run that extends a finished one: the finished one's results."""

EARLIER_FILES = ("results.json", "predictions.npz", "curves.csv")

UNITS, UNIT, DONE = "units", "unit.json", "done.json"
"""In the folder of an unfinished run: units of work for other processes, each a folder with what it trains, its
checkpoints, and a mark that it is done."""

EXPERIMENT = "experiment.pt"
"""In the folder of an unfinished run that was begun from Python: what workers make the experiment from."""

PRICE = "price.json"
"""The cost of a further adapter when the run began."""

MEASURED = "measured.json"
"""The base's loss and metric when the run began."""

PLACING, PLACING_FORMAT = "placing.json", "rankwise-placing-1"
"""Lists Rankwise's files and adapters while results are put in place."""

_OURS = re.compile(
    rf"{ABOUT}|{PLAN}|{MEASURED}|{PRICE}|{PLACING}|config\.yaml|base(/model\.safetensors)?|"
    rf"{EARLIER}(/({'|'.join(map(re.escape, EARLIER_FILES))}))?|(stage-\d+/|{UNITS}/\d+/)?(checkpoint-\d{{6,}}\.json|"
    rf"\d{{6,}}-[\w-]+\.safetensors|{PLAN})|stage-\d+|{EXPERIMENT}|"
    rf"{UNITS}(/\d+(/({UNIT}|{DONE}|{re.escape(LOCK)}))?)?"
)
_TEMPORARY = re.compile(r"\.(.+?)\.\d+\.(tmp|mode)")


def holds_results(directory: Path) -> bool:
    """Whether there are results of Rankwise."""
    return str(_json(directory / RUN_MARK).get("format", "")).startswith("rankwise-results-")


def holds_unfinished(directory: Path) -> bool:
    """Whether a run in this directory has begun and not finished."""
    folder = directory / UNFINISHED
    return (folder / PLAN).exists() and _is_unfinished(folder)


def why_no_adapter(folder: Path) -> str | None:
    """Why there is no adapter in a folder that belongs to a run, and what to give instead; None where there is one, or
    no run."""
    if holds_results(folder) or holds_unfinished(folder):
        named = sorted(named_adapters(folder))
        which = f", such as {folder / ADAPTERS / named[0]}" if named else ""
        best = f"{folder / BEST}, or " if (folder / BEST).is_dir() else ""
        return f"{folder} is a run's directory and no adapter; give {best}one of its adapters{which}."
    run = folder.parent
    if folder.name not in (BEST, SHIP) or folder.exists():
        return None
    if not holds_results(run):
        unfinished = (
            f"{run} holds an unfinished run, which has recommended no adapter yet; finish it with --resume {run}."
        )
        return unfinished if holds_unfinished(run) else None
    results = _json(run / RUN_MARK)
    to_ship = folder.name == SHIP
    answer: Any = ((results.get("compressed") or {}).get("ship") if to_ship else results.get("answer")) or {}
    named = sorted(named_adapters(run))
    adapter = answer.get("adapter") or (f"{ADAPTERS}/{named[0]}" if named else None)
    why = (
        "no adapter was cut to a smaller rank"
        if to_ship and not answer
        else "its answer is undecided"
        if answer.get("verdict") == "undecided"
        else "its answer is no adapter"
        if answer
        else "it has no answer"
    )
    advice = [f"{answer['next']} may decide it"] if isinstance(answer.get("next"), str) else []
    if adapter:
        advice.append(f"an adapter of your own choice is given by its folder, such as {run / adapter}")
    none = f"{run} recommends no adapter{' to ship' * to_ship}, so there is no {folder}"
    return "; ".join([f"{none}: {why}", *advice]) + "."


def foreign(directory: Path) -> Iterator[Path]:
    """Yield what a run in this directory would replace or remove though it is not Rankwise's.

    In a directory without results and without an unfinished run that is everything.
    """
    if not directory.exists():
        return
    results, unfinished = holds_results(directory), holds_unfinished(directory)
    placing = _placing(directory / UNFINISHED)
    ours: set[str] = {*placing} | ({RUN_MARK, *RESULTS, *REPORT, ADAPTERS, "base"} if results else set())
    written = {RUN_MARK, *RESULTS, *REPORT, ADAPTERS, "base"}
    for path in sorted(directory.iterdir()):
        if path.name == LOCK or is_staging(path):
            continue
        if path.name == UNFINISHED:
            yield from _foreign_in_unfinished(path)
        elif path.name not in ours:
            if path.name in written or not (results or unfinished):
                yield path
        elif path.name == ADAPTERS:
            yield from _foreign_in(path, named_adapters(directory))
        elif path.name == "base":
            yield from _foreign_in(path, {BASE_FILE.name})


def named_adapters(directory: Path) -> set[str]:
    """Folders in `adapters/` that results in this directory name, or that are being put in place."""
    named = _named(_json(directory / RUN_MARK)) | cut_folders(directory)
    return named | set(_placing(directory / UNFINISHED).get(ADAPTERS, ()))


def cut_folders(directory: Path) -> set[str]:
    """Those of them that hold adapters that were cut."""
    compressed: Any = _json(directory / RUN_MARK).get("compressed")
    configurations: Any = (
        cast("dict[str, Any]", compressed).get("configurations") if isinstance(compressed, dict) else None
    )
    groups = cast("list[Any]", configurations) if isinstance(configurations, list) else []
    return {name for group in groups for name in _named(group)}


def _named(group: Any) -> set[str]:
    """Folders in `adapters/` that the runs of a group name."""
    runs: Any = cast("dict[str, Any]", group).get("runs") if isinstance(group, dict) else None
    named: set[str] = set()
    for run in cast("list[Any]", runs) if isinstance(runs, list) else []:
        adapter: Any = cast("dict[str, Any]", run).get("adapter") if isinstance(run, dict) else None
        if isinstance(adapter, str) and adapter.startswith(f"{ADAPTERS}/"):
            named.add(adapter.removeprefix(f"{ADAPTERS}/"))
    return named


def is_staging(path: Path) -> bool:
    """Whether a killed run has left this: a folder of results on their way, or a half-written file."""
    if re.fullmatch(re.escape(STAGED) + r"\d+", path.name):
        return path.is_dir() and not path.is_symlink()
    half = _TEMPORARY.fullmatch(path.name)
    return half is not None and half[1] in (RUN_MARK, *RESULTS, *REPORT)


def clear_staging(directory: Path) -> None:
    """Remove leftovers of killed runs; only the run that holds the directory may call it."""
    for path in directory.iterdir():
        if is_staging(path):
            remove(path)


def remove_results(directory: Path) -> None:
    """Remove results, without the report, and nothing that `foreign` names."""
    adapters = named_adapters(directory)
    for name in (RUN_MARK, *RESULTS, BASE_FILE):
        (directory / name).unlink(missing_ok=True)
    if (folder := directory / ADAPTERS).is_dir():
        for path in folder.iterdir():
            if path.name in adapters:
                remove(path)
    for name in (ADAPTERS, "base"):
        _remove_empty(directory / name)


def remove_unfinished(directory: Path) -> None:
    """Remove what a run was resumed from, and nothing that `foreign` names."""
    folder = directory / UNFINISHED
    if folder.is_symlink() or not folder.is_dir() or not _is_unfinished(folder):
        return
    paths = [path for path in folder.rglob("*") if _is_ours(path, folder)]
    files = [path for path in paths if path.is_symlink() or not path.is_dir()]
    # Without its plan it is no run to resume; without the first file it is nobody's.
    for path in sorted(files, key=lambda path: (path.name == ABOUT, path.name != PLAN)):
        path.unlink(missing_ok=True)
    for path in sorted((path for path in paths if path.is_dir()), reverse=True):
        _remove_empty(path)
    _remove_empty(folder)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a whole folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _json(path: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _placing(folder: Path) -> dict[str, list[str]]:
    try:
        return read_checked(folder / PLACING, PLACING_FORMAT)
    except CheckpointError:
        return {}


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder is of an unfinished run: it says so, or was left before it could."""
    if any(str(_json(folder / file).get("format", "")).startswith("rankwise-") for file in (ABOUT, PLAN, PLACING)):
        return True
    left = [path for path in folder.iterdir() if not path.is_dir() or any(path.iterdir())]
    return all((half := _TEMPORARY.fullmatch(path.name)) is not None and half[1] == ABOUT for path in left)


def _is_ours(path: Path, folder: Path) -> bool:
    if half := _TEMPORARY.fullmatch(path.name):
        path = path.with_name(half[1])
    return _OURS.fullmatch(path.relative_to(folder).as_posix()) is not None


def _foreign_in_unfinished(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir() or not _is_unfinished(folder):
        yield folder
        return
    yield from (path for path in sorted(folder.rglob("*")) if not _is_ours(path, folder))


def _foreign_in(folder: Path, known: set[str]) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        yield folder
        return
    yield from (path for path in sorted(folder.iterdir()) if path.name not in known)
