"""A sweep whose adapters start high up in the model: what the blocks below give is kept for each row of its data."""

import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from rankwise.errors import ConfigError, OutputError
from rankwise.pack.batches import mapped
from rankwise.pack.resolved import resolve
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.problem import DEFAULT_DATA, Problem
from rankwise.train.data.tensors import count_rows
from rankwise.train.prefix import check_room, find_prefix

CACHED = "cached"
"""The name of the splits with the cache."""


@contextmanager
def cached(
    model: nn.Module, candidates: Sequence[Candidate], problem: Problem, where: bool | Path, say: Callable[[str], None]
) -> Generator[tuple[list[Candidate], Problem]]:
    """The candidates and the problem with a cache; its files go at the end of this block.

    Full fine-tuning changes every block, so it reads the data as they are; so does everything on test data, which is
    read once.

    Args:
        model: The base.
        candidates: What is tried.
        problem: On one set of data, `DEFAULT_DATA`.
        where: A folder for files; True for memory, False for no cache.
        say: Told the size beforehand.

    Raises:
        ConfigError: Nothing can be cached, or it doesn't fit.
        OutputError: The folder can't be written to.
    """
    if where is False:
        yield list(candidates), problem
        return
    folder = where if isinstance(where, Path) else None
    paths: dict[nn.Parameter, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(parameter, []).append(path)
    adapted: set[str] = set()
    for one in (c for c in candidates if c.method != "full"):
        resolved = resolve(model, one.run(1.0, 0).member)
        if bare := next((t.name for t in resolved.targets if t.reader is not None or t.ties), None):
            raise ConfigError(
                f'The weight of "{bare}" is shared, or read without calling its layer, so nothing says what runs '
                "before it. Switch the cache off."
            )
        adapted |= {t.name for t in resolved.targets}
        # A weight trained in full acts in every module that has it.
        adapted |= {
            path.rpartition(".")[0] for name in resolved.trained_parameters for path in paths[model.get_parameter(name)]
        }
    splits = problem.splits[DEFAULT_DATA]
    example = problem.feed.prepare(mapped(splits.train, lambda t: t[:3]))
    prefix = find_prefix(model, adapted, example, problem.feed.call)
    rotation = problem.rotation_of(DEFAULT_DATA)
    sets = {"pool": rotation.pool} if rotation else {"train": splits.train, "validation": splits.validation}
    rows = sum(count_rows(data, name) for name, data in sets.items())
    needed = rows * prefix.bytes_a_row
    check_room(needed, next(model.parameters()).device, folder)
    place = "memory" if folder is None else str(folder)
    say(
        f"Caching what {', '.join(prefix.stored)} gives for {rows:,} rows: {needed / 1e6:,.1f} MB in {place}. Up to "
        "there the model runs once a row."
    )
    with ExitStack() as stack:
        own = None if folder is None else stack.enter_context(_temporary(folder))
        beside = {name: prefix.beside(data, own, name) for name, data in sets.items()}
        if rotation is not None:
            n, pool = count_rows(splits.train, "training"), beside["pool"]
            beside = {"train": mapped(pool, lambda t: t[:n]), "validation": mapped(pool, lambda t: t[n:])}
            rotation = replace(rotation, pool=pool)
        feed = replace(problem.feed, call=prefix.run)
        yield (
            [c if c.method == "full" else replace(c, data=CACHED) for c in candidates],
            replace(
                problem,
                splits={DEFAULT_DATA: splits, CACHED: replace(splits, **beside, rotation=rotation)},
                loss=prefix.reading(problem.loss),
                metric=prefix.reading(problem.metric),
                feed=feed,
            ),
        )


@contextmanager
def _temporary(folder: Path) -> Generator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="rankwise-cache-", dir=folder)
    except OSError as error:
        raise OutputError(f'The cache can\'t be written to "{folder}": {error.strerror}.') from error
    with made as name:
        yield Path(name)
