"""Starts of adapters from training data: what an initialisation takes from them, for each seed its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.lora.base.init_data import Batches, attention_mask, data_of_layers
from rankwise.lora.inits import INITS
from rankwise.lora.layer.initial import DataOfLayers, initial_tensors
from rankwise.lora.targets.find import find_targets
from rankwise.pack.batches import lazily, selected
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter
from rankwise.pack.modes import left_as_found, statistics_frozen
from rankwise.pack.resolved import AdapterState
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.problem import Problem

INIT_BATCHES = 16
"""Batches of the training data that an initialisation reads, at most: the first that the seed trains on."""


@dataclass(eq=False)
class InitData:
    """What initialisations take from the training data of a sweep, read once for each seed.

    Args:
        model: The base.
        problem: Data and loss.
    """

    model: nn.Module
    problem: Problem
    _known: dict[tuple[object, ...], DataOfLayers] = field(default_factory=dict[tuple[object, ...], DataOfLayers])

    def start(self, candidate: Candidate, seed: int) -> AdapterState:
        """What a candidate's adapter starts with, frozen tensors included."""
        if candidate.lora is None:
            return {}
        config = replace(candidate.lora, seed=seed)
        with statistics_frozen(self.model), left_as_found(self.model):
            targets = [t for t in find_targets(self.model, config).adapted if t.name not in candidate.modules_to_save]
            key = (INITS[config.init].data, candidate.data, candidate.training.batch_size, seed)
            key = (*key, *(target.name for target in targets))
            if key not in self._known:
                given = self._batches(candidate, seed)
                self._known[key] = data_of_layers(self.model, targets, config.init, given) or {}
            return {
                f"{target.name}.{name}": tensor.cpu()
                for target in targets
                for name, tensor in initial_tensors(target, config, self._known[key]).items()
            }

    def _batches(self, candidate: Candidate, seed: int) -> Batches:
        """The first batches of a seed's first epoch, in the order in which it trains on them."""
        splits, rotation = self.problem.splits[candidate.data], self.problem.rotation_of(candidate.data)
        data, rows = splits.train, None
        if rotation is not None:
            data, rows = rotation.pool, rotation.cut(seed).train.unsqueeze(0)
        size, feed = candidate.training.batch_size, self.problem.feed
        order = feed.order(data, [seed], 0, size, rows)[0][: INIT_BATCHES * size]
        batches = (feed.prepare(selected(data, own)) for own in order.split(size))
        loss, groups = PerAdapter(self.problem.loss, "loss"), Groups([0], 1, order.device)

        def mean_loss(model: nn.Module, batch: Any) -> Tensor:
            outputs = feed.call(model, batch)
            return loss.mean(outputs.unsqueeze(0), lazily(batch, lambda t: t.unsqueeze(0)), groups)[0]

        return Batches(batches, feed.call, mean_loss, attention_mask)


@dataclass(frozen=True, eq=False)
class DataStart:
    """A candidate's start by seed: what follows from training data, over the start that it has without them.

    Args:
        data: Where the data are.
        candidate: The candidate.
    """

    data: InitData
    candidate: Candidate

    def __call__(self, seed: int) -> AdapterState:
        """Return the tensors to start from."""
        with torch.inference_mode(mode=False):
            return {**self.candidate.start(seed), **self.data.start(self.candidate, seed)}

    def __repr__(self) -> str:
        """The same in every process: run directories hold it."""
        return f"DataStart({self.candidate.name!r})"


def with_data_starts(candidates: Sequence[Candidate], model: nn.Module, problem: Problem) -> list[Candidate]:
    """The candidates, those among them whose initialisation reads training data with that as their start.

    Args:
        candidates: What is tried.
        model: The base.
        problem: The data.
    """
    data = InitData(model, problem)

    def started(candidate: Candidate) -> Candidate:
        if candidate.lora is None or not INITS[candidate.lora.init].data:
            return candidate
        # An experiment that is made again, with other data, starts from those.
        own = candidate.start.candidate.start if isinstance(candidate.start, DataStart) else candidate.start
        return replace(candidate, start=DataStart(data, replace(candidate, start=own)))

    return [started(candidate) for candidate in candidates]
