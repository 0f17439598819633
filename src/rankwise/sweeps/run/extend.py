"""A finished sweep as the beginning of a longer one: its runs, read back, and whether they belong to it.

What is trained is planned as if nothing had been: the grid, or the steps of the adaptive plan, with all seeds and
configurations from the start. Runs that the earlier sweep has finished are taken from it, so the longer sweep comes to
what it would have come to without the earlier one.
"""

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.errors import CheckpointError, OutputError, option
from rankwise.results import FORMAT, Results, parsed, plain
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.plan.plan import fingerprint, run_fingerprint
from rankwise.sweeps.problem import Problem, Run, Scores, SweepState
from rankwise.sweeps.run.stage import Finished
from rankwise.sweeps.storage.owned import BASE_FILE, EARLIER_FILES
from rankwise.sweeps.storage.same_problem import ELSEWHERE, LOSS, SAME
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.writing import read_regular

FREE = ("seeds", "max_runs", "max_minutes", "compressed", "squeeze_steps")
"""Settings of a plan that the longer sweep may change."""


@dataclass(frozen=True)
class Earlier:
    """The results of a finished sweep.

    Args:
        directory: Where they lie.
        files: Name -> content, of `EARLIER_FILES`.
        results: The content of `results.json`.
    """

    directory: Path
    files: Mapping[str, bytes]
    results: Results

    def finished(
        self,
        model: nn.Module,
        problem: Problem,
        candidates: Sequence[Candidate],
        *,
        data: Mapping[str, Any],
        plan: Mapping[str, Any],
        measured: Mapping[str, float],
    ) -> Finished:
        """Compare the results with the longer sweep, and read its runs back.

        Args:
            model: The base.
            problem: Data, loss and metric.
            candidates: What the longer sweep tries.
            data: Sizes and fingerprints of its data, as `results.json` has them.
            plan: Its plan, from `plan_of`.
            measured: The base's loss on the first training rows, and its metric on the validation data.

        Raises:
            CheckpointError: The base, the data, the settings or the metric are others, something the results hold is
                missing in the longer sweep, or a file is damaged.
        """
        results = self.results
        if (sha := fingerprint(model.state_dict())) != results.base.sha256:
            raise self._refused(
                f"the base has other weights now: SHA-256 {sha[:12]}, and {str(results.base.sha256)[:12]} then"
            )
        if problem.metric_name != results.metric.name:
            raise self._refused(f"the metric is {problem.metric_name} now, and was {results.metric.name}")
        before = plain(results.data)
        for part, now in json.loads(json.dumps(data)).items():
            if now != before.get(part):
                raise self._refused(f"the {part} data differ from those it was run on")
        self._check_plan(plan)
        self._check_measured(measured, model)
        try:
            swept, fingerprints = self._read(candidates, problem)
        except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, CheckpointError):
                raise
            raise self._refused("its results are damaged") from error
        search = {name: (float(lr), bool(edge)) for name, (lr, edge) in self.plan["search"].items()}
        return Finished(swept, fingerprints, search, plain(results.grid.search or []), self.plan["price"])

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of the finished sweep."""
        return self.results.plan or {}

    def _refused(self, fact: str) -> CheckpointError:
        return CheckpointError(
            f"The finished run in {self.directory} can't be extended: {fact}. Only seeds and configurations can be "
            f"added; give what it was run with, or another directory with {option('out')}."
        )

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        before, now = self.plan, json.loads(json.dumps(plan))
        for name, value in now["settings"].items():
            if name not in FREE and value != before["settings"].get(name):
                raise self._refused(f"{option(name)} is {value} now, and was {before['settings'].get(name)}")
        if missing := [str(seed) for seed in before["seeds"] if seed not in now["seeds"]]:
            raise self._refused(f"its seeds {', '.join(missing)} are not among those given")
        for name, rates in before["lrs"].items():
            if name not in now["lrs"]:
                raise self._refused(f'its configuration "{name}" is not among those given')
            if rates != now["lrs"][name]:
                raise self._refused(f"the learning rates of {name} are {now['lrs'][name]} now, and were {rates}")

    def _check_measured(self, measured: Mapping[str, float], model: nn.Module) -> None:
        """Whether model code, loss and metric are the same: none of them has a checksum."""
        device, version = str(next(model.parameters()).device), torch.__version__
        same = self.results.device == device == "cpu" and self.results.versions["torch"] == version
        for name, now in measured.items():
            then = self.plan["measured"].get(name)
            if name != LOSS and not same:
                continue  # metrics that count rows flip single rows elsewhere
            now = now if math.isfinite(now) else None
            alike = (
                then is not None and now is not None and math.isclose(then, now, rel_tol=SAME if same else ELSEWHERE)
            )
            if then != now and not alike:
                raise self._refused(
                    f"the base's {name} is {now} now, and was {then}, so the code of the model, the loss or the metric "
                    "is another"
                )

    def _read(self, candidates: Sequence[Candidate], problem: Problem) -> tuple[SweepState, dict[str, str]]:
        by_name = {c.name: c for c in candidates}
        with np.load(io.BytesIO(self.files["predictions.npz"]), allow_pickle=False) as archive:
            arrays: dict[str, np.ndarray] = {key: archive[key] for key in archive}
        runs: list[Run] = []
        swept = SweepState(runs, {}, complete=True)
        parameters: dict[str, int] = {}
        fingerprints: dict[str, str] = {}
        for earlier in self.results.runs:
            settings, pack = earlier.settings, earlier.pack
            if earlier.configuration is None or earlier.lr is None or earlier.seed is None or pack is None:
                raise ValueError("a run has no configuration, learning rate, seed or pack")
            run = by_name[earlier.configuration].run(earlier.lr, earlier.seed)
            name = run.name
            if name != earlier.name or settings is None or run_fingerprint(run) != settings:
                raise self._refused(f"{earlier.name} has other settings now")
            runs.append(run)
            parameters[name], fingerprints[name] = earlier.trainable_parameters, settings
            deciding, rows = arrays.get(f"deciding/{name}"), arrays.get(f"rows/{name}")
            swept.outcomes[name] = Outcome(
                name=name,
                state={},
                deciding=deciding,
                status=earlier.status,
                reason=earlier.reason,
                best_step=earlier.best_step or 0,
                steps=earlier.steps or 0,
                epochs=int(earlier.epochs or 0),
                seconds=earlier.seconds or 0.0,
            )
            swept.packs[name] = pack
            if earlier.peak_memory_bytes is not None:
                swept.memory[name] = earlier.peak_memory_bytes
            if f"validation/{name}" not in arrays:
                continue
            now = problem.cut_rows(run)
            if (rows is None) != (now is None) or (rows is not None and not np.array_equal(rows, np.asarray(now))):
                raise self._refused(f"seed {run.member.seed} validates on other rows now")
            loss = earlier.validation_loss
            swept.scores[name] = Scores(
                arrays[f"validation/{name}"],
                math.nan if loss is None else loss,
                arrays[f"test/{name}"],
                {test: arrays[f"other/{test}/{name}"] for test in problem.other_tests},
                # Of texts that were written no epoch was chosen, so the cross-fitted values are of the loss.
                deciding=deciding if problem.model_metric is None else None,
                rows=rows,
                losses=arrays.get(f"loss/{name}"),
            )
        swept.parameters = parameters
        swept.curve = _points(self.files["curves.csv"].decode("utf-8"))
        ends = {point.run: point.step for point in swept.curve}
        if any(ends.get(name) != outcome.steps for name, outcome in swept.outcomes.items() if name in swept.scores):
            raise ValueError("a curve is not whole")
        return swept, fingerprints


def read_earlier(directory: Path, files: Mapping[str, bytes] | None = None) -> Earlier:
    """Read the results of a finished run.

    Args:
        directory: The run directory.
        files: The content of `EARLIER_FILES`, where it was read before.

    Raises:
        CheckpointError: There are none, they are damaged or of another version, or not all of the sweep has run.
    """
    try:
        files = files or {name: read_regular(directory / name) for name in EARLIER_FILES}
        results: Any = json.loads(files["results.json"])
    except OSError as error:
        raise CheckpointError(
            f"{directory} holds no finished run to extend: {Path(str(error.filename)).name} can't be read "
            f"({error.strerror}); give the directory of one."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The results in {directory} can't be extended: results.json is damaged.") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT or "plan" not in results:
        raise CheckpointError(
            f"The results in {directory} can't be extended: this version of rankwise extends only what it has written."
        )
    if not results.get("complete"):
        raise CheckpointError(f"The run in {directory} is not finished, so it can't be extended.")
    try:
        return Earlier(directory, files, parsed(results))
    except OutputError as error:
        raise CheckpointError(f"The results in {directory} can't be extended: {error}") from error


def read_base(directory: Path) -> dict[str, Tensor] | None:
    """The weights of the base that lies in a run directory; None where the run keeps none there.

    Raises:
        CheckpointError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = directory / BASE_FILE
    try:
        return load(read_regular(path))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}), so the run can't be extended.") from error


def plan_of(
    candidates: Sequence[Candidate], seeds: Sequence[int], settings: Mapping[str, Any], measured: Mapping[str, float]
) -> dict[str, Any]:
    """The plan of a sweep, as stored in `results.json` for comparison with a longer sweep.

    Args:
        candidates: What is tried.
        seeds: Of the runs that count; of an adaptive plan at most.
        settings: How it decides.
        measured: As `Earlier.finished` takes it.
    """
    return {
        "settings": dict(settings),
        "seeds": list(seeds),
        "lrs": {c.name: list(c.lrs) for c in candidates},
        "measured": {name: value if math.isfinite(value) else None for name, value in measured.items()},
    }


def was_rotated(directory: Path) -> bool | None:
    """Whether each seed of the results in a directory validated on its own rows; None where there are none."""
    try:
        results: Any = json.loads(read_regular(directory / EARLIER_FILES[0]))
        return bool(results["plan"]["settings"]["rotate"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def _points(text: str) -> list[EpochPoint]:
    numbers = [field.name for field in fields(EpochPoint) if field.name not in ("run", "step")]
    return [
        EpochPoint(run=row["run"], step=int(row["step"]), **{name: float(row[name]) for name in numbers})
        for row in csv.DictReader(io.StringIO(text))
    ]
