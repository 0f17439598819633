"""One adapter of several of one base."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from rankwise.adapter_files.base.checksums import BASE
from rankwise.adapter_files.updates import StoredAdapter, StoredUpdate, read_updates, write_updates
from rankwise.errors import AdapterFileError, ConfigError, option
from rankwise.streams import stream
from rankwise.surgery import methods
from rankwise.surgery.folders import new_folder
from rankwise.surgery.methods import Factors, Term
from rankwise.surgery.report import SurgeryReport, report_of

Method = Literal["linear", "cat", "svd", "ties", "dare"]
_OF_A_RANK, _SPARSE = ("svd", "ties", "dare"), ("ties", "dare")


def combine(
    adapters: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    method: Method = "svd",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> SurgeryReport:
    r"""Write one adapter of several that adapt the same modules of one base; the base isn't needed.

    The report holds the result against the exact sum $\sum_i w_i s_i B_i A_i$.

    | method | result |
    |---|---|
    | `cat` | the exact sum; its rank is the sum of the ranks |
    | `svd` | the exact sum truncated to a rank, from the thin factors |
    | `linear` | the sum of the factors, as in peft: cheap, and no sum of the updates |
    | `ties` | the entries that are large and agree in sign (TIES), truncated to a rank |
    | `dare` | entries dropped at random and the rest rescaled (DARE), summed, truncated to a rank |

    `ties` and `dare` form the updates, one module at a time.

    Args:
        adapters: Folders of two or more adapters in PEFT's format, of plain LoRA.
        out: The new folder.
        weights: Of each adapter, of either sign; by default they are equal and sum to 1.
        method: See the table.
        rank: Of the result, for svd, ties and dare; by default the adapters' largest, module by module.
        density: Share of the entries that stay, for ties and dare, in (0, 1].
        seed: Of dare's random entries.

    Returns:
        Each update's rank and its distance from the exact sum, as written.

    Raises:
        ConfigError: A setting is out of its range, or the method has no such setting.
        AdapterFileError: An adapter is damaged or not of plain LoRA, or they adapt other modules or bases, or train
            something whole to different values.
        OutputError: `out` is not empty, or can't be written.

    Examples:
        >>> import rankwise, tempfile
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> _ = rankwise.inject(model, rankwise.LoRAConfig(r=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = (rankwise.save_adapter(model, f"{folder}/{name}") for name in "ab")
        ...     report = rankwise.combine([a, b], f"{folder}/both", weights=[0.7, 0.3], method="cat")
        >>> report.updates[0].r
        2

    References:
        TIES: https://arxiv.org/abs/2306.01708; DARE: https://arxiv.org/abs/2311.03099
    """
    shares = check_settings(len(adapters), weights, method, rank, density)
    stored = [read_updates(adapter) for adapter in adapters]
    first = stored[0]
    for other in stored[1:]:
        _check_alike(first, other)
    for one in stored:
        _check_summable(one)
    combined: dict[str, Factors] = {}
    exact: dict[str, list[tuple[float, torch.Tensor, torch.Tensor]]] = {}
    for path in first.updates:
        updates = [one.updates[path] for one in stored]
        terms = [Term(w, one.scale, one.pair.A, one.pair.B) for w, one in zip(shares, updates, strict=True)]
        r = rank or max(update.r for update in updates)
        combined[path] = _combined(method, path, terms, r, density or 1.0, seed)
        exact[path] = [(term.share, term.A, term.B) for term in terms]
    with new_folder(out, beside=first.folder) as folder:
        write_updates(folder, first, combined)
        report = report_of(exact, read_updates(folder))
    return replace(report, folder=Path(out))


def _combined(method: Method, path: str, terms: Sequence[Term], r: int, density: float, seed: int) -> Factors:
    if method == "cat":
        return methods.cat(terms)
    if method == "svd":
        return methods.svd(terms, r)
    if method == "ties":
        return methods.ties(terms, r, density)
    if method == "dare":
        return methods.dare(terms, r, density, stream(seed, "dare", path))
    ranks = [term.A.shape[-2] for term in terms]
    if len({*ranks}) > 1:
        raise ConfigError(
            f'The adapters have ranks {", ".join(map(str, ranks))} at "{path}"; {option("method")} linear sums their '
            "factors and needs one rank. Choose svd or cat."
        )
    return methods.linear(terms)


def check_settings(
    n: int, weights: Sequence[float] | None, method: str, rank: int | None, density: float | None
) -> Sequence[float]:
    """Return each adapter's weight; raise where a setting is out of its range."""
    if n < 2:
        given = "1 adapter is" if n == 1 else "No adapter is"
        raise ConfigError(f"{given} given; give two or more to combine.")
    if method not in get_args(Method):
        raise ConfigError(f'{option("method")} is "{method}"; give one of {", ".join(get_args(Method))}.')
    shares = [1 / n] * n if weights is None else list(weights)
    if len(shares) != n or not all(map(math.isfinite, shares)):
        given = " ".join(f"{share:g}" for share in shares)
        raise ConfigError(f"{option('weights')} are {given} for {n} adapters; give a finite number for each.")
    if rank is not None and (rank < 1 or method not in _OF_A_RANK):
        rule = "a rank is at least 1" if rank < 1 else f"the rank of {method} follows from the adapters'"
        raise ConfigError(f"{option('rank')} is {rank}; {rule}. Leave it out, or choose {option('method')} svd.")
    if (density is None) == (method in _SPARSE) or (density is not None and not 0 < density <= 1):
        what = "missing" if density is None else f"{density:g}"
        raise ConfigError(
            f"{option('density')} is {what}; {option('method')} ties and dare need it and no other has it: the share "
            "of entries that stay, in (0, 1], such as 0.2."
        )
    return shares


def _check_alike(one: StoredAdapter, other: StoredAdapter) -> None:
    """Check that two adapters adapt the same modules of one base."""
    for path in sorted(one.updates.keys() ^ other.updates.keys()):
        has, lacks = (one, other) if path in one.updates else (other, one)
        raise AdapterFileError(
            f'{has.folder} adapts "{path}" and {lacks.folder} doesn\'t. Only adapters of the same modules can be '
            "combined."
        )
    for path in one.updates:
        shapes = [_shape(it.updates[path], it.file.parts.pairs[path]) for it in (one, other)]
        if shapes[0] != shapes[1]:
            raise AdapterFileError(
                f'The update of "{path}" has shape {shapes[0]} in {one.folder} and {shapes[1]} in {other.folder}. Only '
                "adapters of one base can be combined."
            )
    records = [_base_records(it) for it in (one, other)]
    for path in sorted(records[0].keys() & records[1].keys()):
        if records[0][path] != records[1][path]:
            raise AdapterFileError(
                f'{one.folder} and {other.folder} were saved over different weights of "{path}". Only adapters of one '
                "base can be combined."
            )
    names = [str(it.file.fields.get("base_model_name_or_path") or "") for it in (one, other)]
    if not all(records) and all(names) and len({name.rstrip("/").rpartition("/")[2] for name in names}) > 1:
        raise AdapterFileError(
            f'{one.folder} is of base "{names[0]}" and {other.folder} of "{names[1]}". Only adapters of one base can '
            "be combined."
        )
    wholes = [_trained_whole(it) for it in (one, other)]
    for key in sorted({**wholes[0], **wholes[1]}):
        values = [None if (tensor := whole.get(key)) is None else tensor.double() for whole in wholes]
        if values[0] is None or values[1] is None or not torch.equal(values[0], values[1]):
            raise AdapterFileError(
                f'{one.folder} and {other.folder} differ in "{key}", which is trained in full. Only updates of A and B '
                "can be combined; two heads would be neither's."
            )


def _shape(update: StoredUpdate, filed: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, ...]:
    return (update.pair.A.shape[0], update.pair.B.shape[1], *filed[0].shape[1:])


def _trained_whole(stored: StoredAdapter) -> dict[str, torch.Tensor]:
    """Key -> tensor, of all in a file that isn't an A or B."""
    factors = {id(tensor) for pair in stored.file.parts.pairs.values() for tensor in pair}
    return {key: tensor for key, tensor in stored.file.flat.items() if id(tensor) not in factors}


def _base_records(stored: StoredAdapter) -> Mapping[str, str]:
    records: dict[str, str] = json.loads(stored.file.metadata.get(BASE, "{}"))
    return records


def _check_summable(stored: StoredAdapter) -> None:
    if stored.file.parts.biases:
        raise AdapterFileError(f"{stored.folder} has biases of B (lora_bias), which combine doesn't sum. Leave it out.")
    if zero := next((path for path, update in stored.updates.items() if update.scale == 0), None):
        raise AdapterFileError(f'{stored.folder} has alpha = 0 at "{zero}", so it adds nothing. Leave it out.')
