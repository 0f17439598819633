"""Settings and progress of the adapters of a pack, as vectors in the pack's order."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rankwise.results.kinds import Status
from rankwise.train.settings import Training


class Stopping:
    """The optimiser's settings of every adapter, its best epoch, and the rule by which it ends.

    Args:
        names: The adapters, in the order of the pack.
        trainings: Their settings.
        device: Where the vectors of the progress lie. Those of the settings are on the CPU, where every step can read
            them without waiting for a device.
        dtype: Their type.
    """

    SETTINGS = ("lr", "weight_decay", "clip")
    PROGRESS = ("best", "best_step", "since_best")

    def __init__(
        self, names: Sequence[str], trainings: Sequence[Training], device: torch.device, dtype: torch.dtype
    ) -> None:
        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype)

        self.names, self.trainings = list(names), list(trainings)
        self.lr = vector([t.lr for t in trainings])
        self.weight_decay = vector([t.weight_decay for t in trainings])
        self.clip = vector([torch.inf if t.clip is None else t.clip for t in trainings])
        self.best = torch.full((len(names),), torch.inf, device=device, dtype=dtype)
        self.best_step = torch.zeros(len(names), dtype=torch.long, device=device)
        self.since_best = torch.zeros(len(names), dtype=torch.long, device=device)

    def observe(self, validation_loss: Tensor, step: int) -> Tensor:
        """Take in the validation losses (K,) after an epoch, and return which of them are the lowest so far."""
        better = validation_loss < self.best  # not where it is NaN
        better &= validation_loss.isfinite()
        self.best = torch.where(better, validation_loss, self.best)
        self.best_step[better] = step
        self.since_best = torch.where(better, 0, self.since_best + 1)
        return better

    def ended(
        self, finite: Sequence[bool], epochs: int, failed: Mapping[str, str]
    ) -> dict[str, tuple[Status, str | None]]:
        """The adapters that are done after this many epochs: name -> (status, reason).

        Args:
            finite: Whether each one's losses in the last epoch were finite.
            epochs: Passes over the data so far.
            failed: What a user's function raised in the last epoch on the outputs of one.
        """
        ended: dict[str, tuple[Status, str | None]] = {}
        rows = zip(self.names, self.trainings, finite, self.since_best.tolist(), strict=True)
        for name, training, ok, since_best in rows:
            if name in failed:
                ended[name] = ("failed", f"{failed[name]}, in epoch {epochs}")
            elif not ok:
                ended[name] = ("diverged", f"the loss was not finite in epoch {epochs}")
            elif epochs >= training.epochs:
                ended[name] = ("finished", None)
            elif training.patience is not None and since_best >= training.patience:
                ended[name] = ("finished", f"no lower validation loss for {training.patience} epochs")
        return ended

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        stays = mask.tolist()
        self.trainings = [t for t, s in zip(self.trainings, stays, strict=True) if s]
        self.names = [n for n, s in zip(self.names, stays, strict=True) if s]
        for key in (*self.SETTINGS, *self.PROGRESS):
            vector = getattr(self, key)
            setattr(self, key, vector[mask.to(vector.device)])

    def state(self) -> dict[str, Tensor]:
        """The progress, not the settings: vectors with an entry for each adapter."""
        return {key: getattr(self, key) for key in self.PROGRESS}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, entries in the present order of the adapters."""
        for key in self.PROGRESS:
            setattr(self, key, state[key].to(getattr(self, key)))
