"""The state of a pack in training: all that is needed to continue it, apart from base, data and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rankwise.pack.resolved import AdapterState
from rankwise.train.outcome import Outcome


@dataclass(frozen=True)
class TrainingState:
    """A pack in training as tensors by name and a plain part that JSON can hold; nothing of the base is in it."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The runs that are still in training."""
        return self.plain["names"]

    def states(self, kind: str) -> dict[str, AdapterState]:
        """Tensors by run: "now", those with the lowest validation loss ("best"), or the optimiser's "moments"."""
        found: dict[str, AdapterState] = {name: {} for name in self.names}
        for path, value in self.tensors.items():
            if path.startswith(f"{kind}/"):
                _, k, key = path.split("/", 2)
                found[self.names[int(k)]][key] = value
        return found

    def final_states(self, weights: Mapping[str, str]) -> dict[str, AdapterState]:
        """The tensors that each run would hand out if it ended now, given which of "best" and "last" it keeps."""
        best, now = self.states("best"), self.states("now")
        return {name: (best if weights[name] == "best" else now)[name] for name in self.names}

    def prune(
        self, reasons: Mapping[str, str], weights: Mapping[str, str]
    ) -> "tuple[list[Outcome], TrainingState | None]":
        """Remove runs between two epochs.

        Args:
            reasons: Run -> why it leaves.
            weights: Run -> which of its weights it hands out, "best" or "last".

        Returns:
            Their outcomes, with the status "pruned", and the state of the others; None where no run is left.
        """
        states, plain = self.final_states(weights), self.plain
        best_steps = dict(zip(self.names, self.vectors("stopping")["best_step"].tolist(), strict=True))
        at = plain["steps"], plain["epoch"], plain["seconds"]
        outcomes = [Outcome(n, states[n], "pruned", reason, best_steps[n], *at) for n, reason in reasons.items()]
        left = [name for name in self.names if name not in reasons]
        return outcomes, self.select(left) if left else None

    def select(self, names: Sequence[str]) -> "TrainingState":
        """The state of some of the runs."""
        places = [self.names.index(name) for name in names]
        tensors: dict[str, Tensor] = {}
        for path, value in self.tensors.items():
            kind, _, rest = path.partition("/")
            if kind == "vector":
                tensors[path] = value[places]
                continue
            k, _, key = rest.partition("/")
            if int(k) in places:
                tensors[f"{kind}/{places.index(int(k))}/{key}"] = value
        return TrainingState(tensors, {**self.plain, "names": list(names)})

    def vectors(self, of: str) -> dict[str, Tensor]:
        """Vectors with an entry for each run, in the order of `names`."""
        start = f"vector/{of}."
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}
