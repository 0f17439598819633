"""The forward passes of adapters that run one after another: each with its own batch, masks and random streams."""

from collections.abc import Callable

import torch
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.batches import Batch, batch_tensors, lazily
from rankwise.pack.groups import Groups
from rankwise.pack.model.one_by_one import OneByOne
from rankwise.pack.model.probe import same
from rankwise.pack.noise.generators import Generators
from rankwise.pack.noise.keyed import Draws, Noise


class Turns:
    """All adapters of a store, one after another.

    Args:
        alone: Runs one of them.
        noise: Keyed numbers.
        generators: Those that the model could draw from.
        streams: Whether it draws from one of them in training. Each pass then has streams keyed to its seed and step;
            else only a pass that turns out to draw.
    """

    def __init__(self, alone: OneByOne, noise: Noise, generators: Generators, *, streams: bool = False) -> None:
        self.alone, self._noise, self._generators, self._streams = alone, noise, generators, streams

    def forward(self, batch: Batch, groups: Groups, draws: Draws, *, training: bool) -> Tensor:
        """Outputs (K, rows, ...); arguments as `PackedModel.forward` takes them."""
        return torch.stack([self.one(k, batch, groups, draws, training=training) for k in range(len(groups.batch_of))])

    def one(
        self,
        k: int,
        batch: Batch,
        groups: Groups,
        draws: Draws,
        *,
        training: bool,
        then: Callable[[Tensor], object] = lambda outputs: None,
    ) -> Tensor:
        """Outputs (rows, ...) of the adapter at a place.

        Args:
            k: Its place.
            batch, groups, draws: As for `forward`.
            training: Whether noise acts.
            then: As `OneByOne` takes it.
        """
        g = groups.batch_of[k]
        own = draws._replace(seeds=draws.seeds[g : g + 1])
        one = Groups([0], 1, batch_tensors(batch)[0].device)

        def run() -> Tensor:
            self._noise.before = ()
            self._noise.begin(one, own)
            # A copy: a model may write to its inputs, and the next adapter reads them too.
            rows = lazily(batch, lambda t: t[g].clone())
            return self.alone(k, rows, self._noise if training else None, then)

        def keyed() -> Tensor:
            with self._generators.keyed(own.seeds[0], own.step, own.first):
                return run()

        if training and self._streams:
            return keyed()
        outputs, drawn = watched(self._generators, run, training=training)
        return keyed() if drawn else outputs


def watched(generators: Generators, run: Callable[[], Tensor], *, training: bool) -> tuple[Tensor, str]:
    """The outputs of a forward pass, and the generator that it drew from ("" for none).

    Args:
        generators: Those that it could draw from.
        run: Passes forward.
        training: Whether it may.

    Raises:
        PackError: It draws in eval mode, so that evaluation is a matter of chance.
    """
    outputs, drawn = generators.drawn_by(run)
    if training or not drawn:
        return outputs, drawn
    if drawn == "random":  # checkers of types draw from it too, and nothing depends on it
        others: list[Tensor] = []
        for key in range(2):
            with generators.keyed("eval", key):
                others.append(run())
        if all(same(other, outputs) for other in others):
            return outputs, ""
    raise PackError(
        f"The model draws random numbers from {drawn} in eval mode on some batches, so no metric would be the same "
        "twice. Switch that off, as by F.dropout(x, p, training=self.training)."
    )
