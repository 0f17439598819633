"""Scores of finished runs as tensors of a checkpoint: what a worker has measured is not measured again."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from rankwise.sweeps.problem import Scores

ARRAYS = [field.name for field in fields(Scores) if field.name not in ("validation_loss", "other")]


def scores_as_tensors(scores: Mapping[str, Scores], runs: Sequence[str]) -> dict[str, Tensor]:
    """Lay out scores as tensors.

    Args:
        scores: Of runs, by name.
        runs: The names of all runs.
    """
    tensors: dict[str, Tensor] = {}
    for name, one in scores.items():
        arrays: dict[str, np.ndarray | None] = {key: getattr(one, key) for key in ARRAYS}
        arrays |= {f"other/{j}/{key}": values for j, (key, values) in enumerate(one.other.items())}
        arrays |= {"validation_loss": np.array(one.validation_loss)}
        i = runs.index(name)
        # A copy, as an array may be read-only.
        tensors |= {f"{i}/{key}": torch.tensor(values) for key, values in arrays.items() if values is not None}
    return tensors


def scores_from(tensors: Mapping[str, Tensor], runs: Sequence[str]) -> dict[str, Scores]:
    """Read scores, the inverse of `scores_as_tensors`."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for path, value in tensors.items():
        i, _, key = path.partition("/")
        arrays.setdefault(runs[int(i)], {})[key] = value.numpy()
    found: dict[str, Scores] = {}
    for name, own in arrays.items():
        others = sorted((key.split("/", 2) for key in own if key.startswith("other/")), key=lambda parts: int(parts[1]))
        other = {test: own.pop(f"other/{j}/{test}") for _, j, test in others}
        found[name] = Scores(validation_loss=float(own.pop("validation_loss")), other=other, **own)
    return found
