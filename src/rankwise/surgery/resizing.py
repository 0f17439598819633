"""An adapter of smaller ranks: the best approximation of each update, by its singular values."""

import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from rankwise.adapter_files.updates import StoredAdapter, read_updates, write_updates
from rankwise.errors import ConfigError, option
from rankwise.surgery.folders import new_folder
from rankwise.surgery.rank_rules import RankRule, rank_rule
from rankwise.surgery.report import SurgeryReport, report_of
from rankwise.surgery.spectra import balanced, thin_svd


def resize(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
) -> SurgeryReport:
    r"""Write an adapter of smaller ranks, as near to a trained one as these ranks allow; no base is needed.

    Each update $s B A$ is replaced by its best approximation of the new rank in the Frobenius norm (Eckart and Young,
    1936), from the thin factors: $B A$ is never formed. The settings keep their alpha, and the new scale is
    folded into A and B. What the adapter trains whole (heads, biases, rows of tokens) is copied.

    With `rank` every weight gets that rank, or keeps its own where that is smaller. With `energy` or `error` each gets
    the smallest one that will do, as `rank_pattern`. Experts, and groups of a convolution that have each an A, are
    matrices by themselves, of one rank.

    Args:
        adapter: Folder of an adapter in PEFT's format.
        out: The new folder.
        rank: The new rank, at most the adapter's own.
        energy: Share of each update's squared Frobenius norm that is to stay, in (0, 1].
        error: Relative error allowed for each update, in the Frobenius norm, in [0, 1).

    Returns:
        Each update's rank and error, as written.

    Raises:
        ConfigError: Not exactly one of the three is given, or it is out of its range.
        AdapterFileError: The adapter is damaged or of a variant whose update is not B A alone (DoRA, VeRA).
        OutputError: `out` is not empty, or can't be written.

    Examples:
        >>> import rankwise, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = rankwise.inject(model, rankwise.LoRAConfig(r=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = rankwise.save_adapter(model, folder + "/r4")
        ...     print(rankwise.resize(folder + "/r4", folder + "/r2", rank=2).updates[0].r)
        2
    """
    rule = rank_rule(rank, energy, error)
    source = read_updates(adapter)
    most = max(update.r for update in source.updates.values())
    if rank is not None and rank > most:
        raise ConfigError(
            f"{option('rank')} is {rank}; {source.folder} has rank {most}, and no truncation has a larger one. Give at "
            f"most {most}."
        )
    with new_folder(out, beside=source.folder) as folder:
        write_updates(folder, source, _resized(source, rule))
        exact = {path: [(one.scale, one.pair.A, one.pair.B)] for path, one in source.updates.items()}
        report = report_of(exact, read_updates(folder))
    return replace(report, folder=Path(out))


def _resized(source: StoredAdapter, rule: RankRule) -> dict[str, tuple[Tensor, Tensor]]:
    """Return every update's A and B, whose product includes the scale."""
    decomposed = {path: thin_svd(one.pair.A, one.scale * one.pair.B.double()) for path, one in source.updates.items()}
    ranks: dict[tuple[str, ...], int] = {}
    for path, (_, S, _) in decomposed.items():
        one = source.updates[path]
        # PEFT has one rank for all that it calls by one name.
        ranks[one.names] = max(ranks.get(one.names, 1), min(one.r, rule.of(S)))
    return {path: balanced(*parts, ranks[source.updates[path].names]) for path, parts in decomposed.items()}
