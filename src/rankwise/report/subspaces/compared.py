"""Which adapters of a sweep are compared, and what comes of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from rankwise.adapter_files.updates import StoredAdapter, read_updates
from rankwise.errors import AdapterFileError, ConfigError, option
from rankwise.results import Results, RunResult
from rankwise.surgery.directions import Amplification, amplification, random_similarity, similarity
from rankwise.surgery.report import natural
from rankwise.surgery.spectra import thin_svd
from rankwise.surgery.weight_files import WeightFiles

MOST = 8
"""Leading directions of the figures in the table."""


@dataclass(frozen=True)
class DirectionOverlap:
    """The similarity of the leading directions of two adapters.

    Args:
        one: The adapter of the smaller rank, in words.
        other: The other.
        by_module: Path -> similarity of the first i directions of the one and the first j of the other: (i, j).
        random: Path -> that of random directions, for the leading ones that the table has.
    """

    one: str
    other: str
    by_module: dict[str, np.ndarray]
    random: dict[str, float]

    @property
    def leading(self) -> dict[str, float]:
        """Path -> similarity of up to eight leading directions of each."""
        return {path: float(values[:MOST, :MOST][-1, -1]) for path, values in self.by_module.items()}


@dataclass(frozen=True)
class Subspaces:
    """What the adapters of a sweep have in common.

    Args:
        overlaps: Between ranks, and between seeds of the largest rank.
        amplified: Adapter in words -> path -> its update and the base; empty where the base's weights are not at hand.
    """

    overlaps: tuple[DirectionOverlap, ...]
    amplified: dict[str, dict[str, Amplification]]


@dataclass(frozen=True)
class _Adapter:
    label: str
    run: RunResult
    stored: StoredAdapter


def compare_subspaces(results: Results, directory: Path) -> Subspaces:
    """Compare the adapters in a run directory: the largest rank with a smaller one, and with itself by another seed.

    The directions are those that the update s B A reads, its right singular vectors; the paper takes those of A alone,
    which depend on how the product is cut into its factors. Adapters of different seeds are compared, for A of one seed
    starts alike at every rank.

    Args:
        results: The content of `results.json`.
        directory: The run directory, with its adapters.

    Raises:
        ConfigError: There are no two adapters of plain LoRA to compare.
        AdapterFileError: An adapter is damaged.
    """
    large, *others = _chosen(results, directory)
    overlaps = tuple(_overlap(other, large) for other in others)
    base = _base(results, directory)
    amplified = {}
    if base is not None:
        smaller = [other for other in others if other.run.r != large.run.r]
        amplified = {one.label: found for one in (large, *smaller) if (found := _amplified(one, base))}
    return Subspaces(overlaps, amplified)


def _chosen(results: Results, directory: Path) -> list[_Adapter]:
    """The adapter of the largest rank, one of a smaller rank and one of another seed, as far as there are."""
    runs = {run.name: run for run in results.runs}
    of_rank: dict[int, list[RunResult]] = {}
    for c in results.configurations:
        own = [runs[name] for name in c.runs if runs[name].adapter is not None]
        if c.method == "lora" and c.r is not None and own:
            of_rank.setdefault(c.r, []).extend(own)
    ranks = sorted(of_rank)
    if not ranks:
        raise _nothing(directory)
    large = of_rank[ranks[-1]][0]
    middle = min(ranks[:-1], key=lambda r: abs(r - 8), default=None)
    picked = [large]
    if middle is not None:
        picked.append(next((run for run in of_rank[middle] if run.seed != large.seed), of_rank[middle][0]))
    picked += [run for run in of_rank[ranks[-1]] if run.seed != large.seed][:1]
    if len(picked) < 2:
        raise _nothing(directory)
    return [
        _Adapter(f"r = {run.r}, seed {run.seed}", run, read_updates(directory / str(run.adapter))) for run in picked
    ]


def _nothing(directory: Path) -> ConfigError:
    return ConfigError(
        f"{directory} has no two adapters with the same modules to compare; {option('subspaces')} needs a sweep with "
        "two ranks or two seeds, and its adapters."
    )


def _directions(adapter: _Adapter, path: str) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of one module's update; of a stack of matrices that of the first."""
    update = adapter.stored.updates[path]
    U, S, Vt = thin_svd(update.pair.A, update.scale * update.pair.B.double())
    return U[0], S[0], Vt[0]


def _overlap(one: _Adapter, other: _Adapter) -> DirectionOverlap:
    by_module: dict[str, np.ndarray] = {}
    random: dict[str, float] = {}
    for path in sorted(one.stored.updates.keys() & other.stored.updates.keys(), key=natural):
        mine, theirs = _directions(one, path)[2], _directions(other, path)[2]
        by_module[path] = similarity(mine, theirs).numpy()
        random[path] = random_similarity(min(MOST, len(mine)), min(MOST, len(theirs)), mine.shape[1])
    return DirectionOverlap(one.label, other.label, by_module, random)


def _base(results: Results, directory: Path) -> WeightFiles | None:
    """The base's weights, where they lie in the run directory or in the folder that is its name."""
    for place in (directory / "base", Path(results.base.name)):
        try:
            return WeightFiles(place)
        except AdapterFileError:
            continue
    return None


def _amplified(adapter: _Adapter, base: WeightFiles) -> dict[str, Amplification]:
    return dict(_of_modules(adapter, base, sorted(adapter.stored.updates, key=natural)))


def _of_modules(adapter: _Adapter, base: WeightFiles, paths: Sequence[str]) -> Iterator[tuple[str, Amplification]]:
    for path in paths:
        U, S, Vt = _directions(adapter, path)
        if (key := f"{path}.weight") in base and base.shape(key) == (U.shape[0], Vt.shape[1]):
            yield path, amplification(U, S, Vt, base.read(key))
