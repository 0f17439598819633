"""A sweep in checkpoints: packs that wait, runs that ended, the curve so far, and what workers have measured."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.sweeps.problem import SweepState
from rankwise.sweeps.storage.scores import scores_as_tensors, scores_from
from rankwise.train.checkpoints import Checkpoints, Tensors
from rankwise.train.events import EpochEnded, Event
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.train.state import TrainingState

SCORES = "scores"
"""The part with what was measured of finished runs."""

MOST_LOGS = 16
"""Log parts before they are written as one."""

OUTCOME = [field.name for field in fields(Outcome) if field.name not in ("state", "deciding")]
Moment = tuple[int, tuple[str, ...]]

NUMBERS = [field.name for field in fields(EpochPoint) if field.name not in ("run", "step")]


class Keeper:
    """Writes a sweep's state as checkpoints, and reads it.

    A pack that has not moved since the last checkpoint is not written again. What has ended since the last one is
    written once, as its own part: the log.

    Args:
        checkpoints: Where.
        swept: What has been found so far; filled by `read`.
    """

    def __init__(self, checkpoints: Checkpoints, swept: SweepState) -> None:
        self._checkpoints, self._swept = checkpoints, swept
        self.cut: list[list[str]] | None = None
        """The runs of each pack, where that is no longer as planned."""
        self._packs: dict[str, tuple[Moment, dict[str, Any]]] = {}
        """The packs as they were written: which state, and its plain part."""
        self._logs: list[str] = []
        self._logged = (0, 0)
        """Outcomes and points that are in the logs."""
        self._scored = 0
        """Scores that are in the last checkpoint."""

    def on_event(self, event: Event) -> None:
        """Count the epochs after which a checkpoint is due."""
        if isinstance(event, EpochEnded):
            self._checkpoints.epoch_over()

    def write(
        self, waiting: Mapping[int, TrainingState], stage: int, out: "Mapping[int, Moment] | None" = None
    ) -> bool:
        """Write a checkpoint; a failure is reported, and training can continue.

        Args:
            waiting: The packs that have begun and not ended.
            stage: Rungs that are behind.
            out: Where packs were that have been handed to a worker: they stay in the checkpoint as they were written.

        Returns:
            Whether it was written; not where a pack that is out had not been.
        """
        swept = self._swept
        still = {f"pack-{i}": self._packs.get(f"pack-{i}", (None, {})) for i in out or {}}
        if any(still[f"pack-{i}"][0] != at for i, at in (out or {}).items()):
            return False
        packs = {f"pack-{i}": (moment(state), state.plain) for i, state in waiting.items()}
        packs |= {name: (at, plain) for name, (at, plain) in still.items() if at is not None}
        parts: dict[str, Tensors | None] = {
            f"pack-{i}": None if self._moment(i) == moment(state) else state.tensors for i, state in waiting.items()
        }
        parts |= dict.fromkeys(still)
        now = len(swept.outcomes), len(swept.curve)
        kept = self._logs if len(self._logs) < MOST_LOGS else []
        log = (
            {}
            if kept and now == self._logged
            else {f"log-{now[0]}-{now[1]}": self._log(*(self._logged if kept else (0, 0)))}
        )
        parts |= {**dict.fromkeys(kept), **log}
        names = [run.name for run in swept.runs]
        if scored := len(swept.scores):
            parts[SCORES] = None if scored == self._scored else scores_as_tensors(swept.scores, names)
        outcomes = [{key: getattr(outcome, key) for key in OUTCOME} for outcome in swept.outcomes.values()]
        plain = {
            "stage": stage,
            "cut": self.cut,
            "packs": {name.removeprefix("pack-"): plain for name, (_, plain) in packs.items()},
            "outcomes": outcomes,
            "runs": names,
            "logs": [*kept, *log],
            "notes": swept.notes,
        }
        if not self._checkpoints.write(parts, plain):
            return False
        self._packs = packs
        self._logs, self._logged, self._scored = [*kept, *log], now, scored
        return True

    def _moment(self, i: int) -> "Moment | None":
        return self._packs.get(f"pack-{i}", (None, {}))[0]

    def read(self) -> tuple[dict[int, TrainingState], int]:
        """Fill what has been found so far from the last whole checkpoint.

        Returns:
            The packs that have begun and not ended, and the number of rungs behind; nothing and 0 without one.
        """
        found = self._checkpoints.read()
        if found is None:
            return {}, 0
        plain, swept = found.plain, self._swept
        self.cut = plain.get("cut")
        swept.note(plain.get("notes", []))
        states: dict[int, dict[str, Tensor]] = {}
        deciding: dict[int, np.ndarray] = {}
        for log in plain["logs"]:
            self._read_log(found.parts[log], plain["runs"], states, deciding)
        for i, outcome in enumerate(plain["outcomes"]):
            swept.outcomes[outcome["name"]] = Outcome(state=states.get(i, {}), deciding=deciding.get(i), **outcome)
        waiting = {int(i): TrainingState(dict(found.parts[f"pack-{i}"]), p) for i, p in plain["packs"].items()}
        self._packs = {f"pack-{i}": (moment(state), state.plain) for i, state in waiting.items()}
        swept.scores |= scores_from(found.parts.get(SCORES, {}), plain["runs"])
        self._logs, self._logged = plain["logs"], (len(swept.outcomes), len(swept.curve))
        self._scored = len(swept.scores)
        return waiting, plain["stage"]

    def _log(self, outcomes: int, points: int) -> dict[str, Tensor]:
        """The tensors of ended runs, and the curve, from these counts on."""
        swept = self._swept
        place = {run.name: i for i, run in enumerate(swept.runs)}
        log: dict[str, Tensor] = {}
        for i, outcome in list(enumerate(swept.outcomes.values()))[outcomes:]:
            log |= {f"state/{i}/{key}": value for key, value in outcome.state.items()}
            if outcome.deciding is not None:
                log[f"deciding/{i}"] = torch.from_numpy(outcome.deciding)
        curve = swept.curve[points:]
        # Numbers in float64 are the very ones, NaN and infinity included.
        numbers = [[getattr(point, key) for key in NUMBERS] for point in curve]
        log["curve/numbers"] = torch.tensor(numbers, dtype=torch.float64).reshape(-1, len(NUMBERS))
        log["curve/where"] = torch.tensor([[place[point.run], point.step] for point in curve]).long().reshape(-1, 2)
        return log

    def _read_log(
        self, log: Tensors, runs: list[str], states: dict[int, dict[str, Tensor]], deciding: dict[int, np.ndarray]
    ) -> None:
        for path, value in log.items():
            kind, _, rest = path.partition("/")
            if kind == "state":
                i, _, key = rest.partition("/")
                states.setdefault(int(i), {})[key] = value
            elif kind == "deciding":
                deciding[int(rest)] = value.numpy()
        for (run, step), numbers in zip(log["curve/where"].tolist(), log["curve/numbers"].tolist(), strict=True):
            named: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True))
            self._swept.curve.append(EpochPoint(run=runs[run], step=step, **named))


def moment(state: TrainingState) -> Moment:
    """Steps taken and runs left: these tell one state of a pack from another."""
    return state.plain["steps"], tuple(state.names)
