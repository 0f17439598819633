"""`sweep`: find the smallest adapter that does the job, for your model, data and loss."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from rankwise.adapter_files import load_adapter
from rankwise.errors import ConfigError, arguments_named, known_arguments
from rankwise.experiment import Experiment, run_experiment
from rankwise.lora.config import OF_PEFT
from rankwise.lora.inject import Report
from rankwise.pack.batches import call_model
from rankwise.pack.losses import PerBatch
from rankwise.pack.resolved import AdapterState
from rankwise.remote.store import url_of
from rankwise.report import answer_words
from rankwise.report.interactive.frame import frame
from rankwise.report.interactive.html import figure_of, results_html
from rankwise.report.table import markdown_table
from rankwise.results import AnswerResult, Results
from rankwise.show.live import progress as shown_by
from rankwise.sweeps.arguments import (
    candidates_from,
    check_cache,
    feed_of,
    problem_of,
    seeds_of,
    splits_of,
    unused_seeds,
)
from rankwise.sweeps.attaching import put_on
from rankwise.sweeps.caching import cached
from rankwise.sweeps.candidates.from_user import Config
from rankwise.sweeps.candidates.grid import LORA_LRS, Candidate
from rankwise.sweeps.candidates.user_values import as_counts, as_list
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.record import add_next
from rankwise.sweeps.run.extend import was_rotated
from rankwise.sweeps.run.location import RunLocation, location_of_sweep
from rankwise.sweeps.run.units.local import LocalProcesses
from rankwise.sweeps.run.units.on_ray import Ray, check_reached
from rankwise.sweeps.storage.directory import can_resume
from rankwise.sweeps.storage.working_copy import run_copy
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.data.feed import ROWS_AT_ONCE, Feed
from rankwise.train.events import Observer, Observers
from rankwise.train.settings import Training


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep.

    Args:
        results: The content of `results.json`.
        swept: The outcomes, scores and curves of the runs.
        files: The files that were written.
        directory: The run directory; None where all is in memory.
    """

    results: Results
    swept: SweepState = field(repr=False)
    files: tuple[Path, ...] = ()
    directory: Path | None = None

    @property
    def answer(self) -> AnswerResult | None:
        """The answer, as in `results.json`; None where there is none."""
        return self.results.answer

    def table(self) -> str:
        """The table, as Markdown."""
        return markdown_table(self.results)

    def to_pandas(self, of: str = "configurations") -> Any:
        """A `pandas.DataFrame` with a row for each of the "configurations", or of the "runs".

        Raises:
            ConfigError: pandas is not installed.
        """
        return frame(self.results, of)

    def plot(self, *, relative: bool = False) -> Any:
        """The figure as a `matplotlib.figure.Figure`: the test metric against trainable parameters.

        Args:
            relative: Whether both are in percent of the reference's.

        Raises:
            ConfigError: There is nothing to draw: one configuration alone, or no test metric.
        """
        return figure_of(self.results, relative=relative)

    def _repr_html_(self) -> str:
        """Answer, table and figure, for a notebook."""
        return results_html(self.results)

    def __str__(self) -> str:
        """The table, and the answer in words."""
        return f"{self.table()}\n{answer_words(self.results)}"

    def put_on(self, model: nn.Module, run: str | None = None, name: str = "default") -> Report:
        """Attach an adapter of the sweep to its base.

        Args:
            model: The base.
            run: Its name in `results`, cut or not; None takes the recommended configuration's best seed.
            name: The adapter's name.

        Raises:
            ConfigError: There is no such finished run.
        """
        found, state = self._run(run)
        # Only the run directory has the state of a run that an earlier sweep finished.
        return put_on(model, found, state, name) if state else load_adapter(model, self._folder(found.name), name)

    def state(self, run: str | None = None) -> AdapterState:
        """The trained tensors of a run: "<module>.A", "<module>.B", and parameters trained in full by their names."""
        found, state = self._run(run)
        if not state:
            raise ConfigError(
                f"{found.name} was trained by the earlier sweep that this one extends, so its tensors are in "
                f"{self._folder(found.name)} alone; read them there, or attach it with put_on."
            )
        return state

    def _folder(self, run: str) -> Path:
        folder = next(one.adapter for one in self.results.runs if one.name == run)
        if folder is None or self.directory is None:
            raise ConfigError(f"{run} was trained by the earlier sweep, and its tensors were not saved.")
        return self.directory / folder

    def _run(self, name: str | None) -> tuple[Run, AdapterState]:
        if name is None:
            if self.answer is None:
                raise ConfigError("The sweep has no answer; name one of its runs.")
            chosen = self.results.configuration(self.answer.name)
            sign = 1 if self.results.metric.higher_is_better else -1
            scores = {run: self.swept.scores[run].decisive.mean() for run in (chosen.runs if chosen else [])}
            if not scores:
                raise ConfigError(f"The answer is {self.answer.name}, which has no run; name one of the sweep's runs.")
            name = max(scores, key=lambda run: sign * scores[run])
        for swept in filter(None, (self.swept, self.swept.compressed)):
            if name in swept.outcomes:
                return next(run for run in swept.runs if run.name == name), swept.outcomes[name].state
        raise ConfigError(f'The sweep has no run "{name}" that ended.')


@known_arguments({name: f"{advice} in a LoRAConfig" for name, advice in OF_PEFT.items()} | {"ranks": "give configs"})
@arguments_named()
# The caller may be inside no_grad or inference_mode, where nothing could be trained.
@torch.inference_mode(mode=False)
@torch.enable_grad()
def sweep(
    model: nn.Module,
    configs: Config | Iterable[Config] | Mapping[str, Config | tuple[Config, Training]],
    *,
    train: Any,
    validation: Any = None,
    test: Any = None,
    loss: PerBatch,
    metric: PerBatch | ModelMetric | None = None,
    metric_name: str | None = None,
    higher_is_better: bool | None = None,
    training: Training | None = None,
    lrs: float | Sequence[float] = LORA_LRS,
    baseline: bool | float | Sequence[float] = True,
    head: str | Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    rungs: int | Sequence[int] = (),
    widen: bool = False,
    tolerance: str | float | None = None,
    confidence: float = 0.95,
    strict: bool = False,
    plan: str = "auto",
    curve: bool | None = None,
    max_runs: int | None = None,
    max_minutes: float | None = None,
    max_parameters: int | None = None,
    rotate: bool | None = None,
    compressed: bool | None = None,
    squeeze_steps: int | None = None,
    call: Callable[[nn.Module, Any], Tensor] | Feed = call_model,
    rows_a_pass: int | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    cache: bool | str | Path = False,
    base_name: str = "base",
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    every: CheckpointInterval | None = None,
    progress: str = "auto",
    observers: Sequence[Observer] = (),
    workers: Ray | LocalProcesses | None = None,
) -> Sweep:
    """Train many adapters together over one frozen model, compare them with full fine-tuning, and recommend one.

    Args:
        model: The base, of any class; its rows must not mix. The sweep leaves it unchanged, bit for bit.
        configs: Ranks (1, 2, 4), `LoRAConfig`s, or folders of saved adapters to continue from; or name -> one of
            these, or -> (one of these, Training) for its own training settings; a learning rate in them is
            the only one that is tried.
        train: Training data: tensors with the rows first (or a tuple or mapping of them), a Dataset, or a DataLoader
            that does not shuffle. They are kept in memory, on the model's device.
        validation: Data that decide; None takes a tenth of the training data.
        test: Data read once, at the end; None takes a tenth of the training data.
        loss: loss(outputs, batch) of ONE adapter: a scalar, or one value a row, or (sums, counts).
        metric: metric(outputs, batch), with the same forms of result; or a `rankwise.ModelMetric`, read off the models
            of runs that have ended; None takes the loss.
        metric_name: Its name in the results.
        higher_is_better: Whether a higher metric is better; by default True where a metric is given.
        training: Batch size, epochs, schedule and so on of all runs; its learning rate is ignored.
        lrs: Learning rates (or one) to try for each configuration.
        baseline: Whether full fine-tuning is trained too (at a tenth of `lrs`), or at which learning rates.
        head: Modules that each adapter trains in full, such as a new output layer, with all modules inside them. With
            one, training the head alone is tried too.
        seeds: How many, or which; the most that the adaptive plan may take. None takes 16 for it, 3 for a grid.
        rungs: Ascending epochs after which the worst configurations (in the adaptive plan learning rates) stop.
        widen: Whether to try further learning rates where the best one is at the edge of those given.
        tolerance: How much worse than the reference is good enough: "1%", "0.5 points", or a number in the metric's
            unit; by default 1% of the reference's metric and at most 5% of its gain over the base, or 5% of that gain
            where lower is better.
        confidence: Probability at which a configuration counts as shown to lie within the tolerance.
        strict: Whether a grid's sizes are tested from the largest down, stopping at the first that fails.
        plan: "auto" trains only what the decision needs: learning rates at a middle size, then sizes by bisection and
            seeds until it is decided. "grid" trains everything.
        curve: Whether the adaptive plan trains every size, at least with its starting seeds; None does where a further
            adapter is cheap.
        max_runs: The most training runs of the adaptive plan.
        max_minutes: The adaptive plan starts nothing new after this many minutes.
        max_parameters: Adapters with more parameters are left out of the decision.
        rotate: Whether each seed validates on its own tenth, where `validation` is None; None does so from 4 seeds on.
        compressed: Whether adapters are also cut to smaller ranks, to name one to ship; None: not for a ModelMetric.
        squeeze_steps: Steps that cut adapters train further, and those trained at their rank for comparison.
        call: (model, batch) -> outputs; by default a mapping is passed as keywords (without "labels"), of a tuple the
            first element. Or a `rankwise.train.data.feed.Feed`, which also makes batches of rows: files are read, texts
            put together.
        rows_a_pass: Rows of a batch in one forward pass of training; None for the whole batch.
        rows_at_once: Rows, over all adapters, in a forward pass of an evaluation.
        cache: Whether the layers before the first adapted one run once for each row, not in every step; their outputs
            stay in memory (True), or in files in this folder until the sweep ends. For adapters of upper blocks. A run
            is resumed with the setting it started with.
        base_name: The base's name in the adapters' files: its folder or hub name.
        out: A directory for results, report and adapters, or a URL of one such as s3://bucket/run; None keeps all in
            memory.
        overwrite: Whether to replace earlier results there.
        resume: Whether to continue what is in `out`: an unfinished run, or a finished one to which `seeds` and
            `configs` add some. Where there is nothing, the sweep starts.
        every: How often a checkpoint is written to `out`.
        progress: "auto" (a live table in a terminal, else lines), "quiet", ...
        workers: `rankwise.Ray(...)` trains packs on a Ray cluster; it needs `out`, which all of its machines see, and
            hands over model, data and functions in a pickle there. `rankwise.LocalProcesses(n)` trains n packs at the
            same time in processes of one thread, which a small model on a CPU wants; on Linux, with `out`. None trains
            in this process.
        observers: Loggers (`rankwise.loggers`), or any objects with a method `on_event`.

    Returns:
        Table, answer, and every adapter.

    Raises:
        RankwiseError: An argument can't be used; one line says why.
        KeyboardInterrupt: Interrupted before there were results.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> x = torch.randn(40, 4)
        >>> found = sweep(
        ...     model,
        ...     [1, 2],
        ...     train=(x, x.sum(1, keepdim=True)),
        ...     loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        ...     lrs=[1e-3],
        ...     training=Training(epochs=2),
        ...     plan="grid",
        ...     progress="quiet",
        ... )
        >>> [c.name for c in found.results.configurations]
        ['r1', 'r2', 'full']
    """
    candidates = candidates_from(model, configs, as_list(head), training or Training(), lrs, baseline)
    splits, notes = splits_of(model, train, validation, test, training)
    deciding = Deciding(
        tolerance=tolerance,
        confidence=confidence,
        strict=strict,
        plan=plan,
        curve=curve,
        max_runs=max_runs,
        max_minutes=max_minutes,
        max_parameters=max_parameters,
        rotate=rotate,
        compressed=compressed,
        squeeze_steps=squeeze_steps,
    )
    problem = problem_of(splits, loss, metric, metric_name, higher_is_better, feed_of(call, rows_at_once, rows_a_pass))
    planned = _experiment(model, candidates, seeds, problem, deciding, base_name, rungs, widen, notes)
    return _run(planned, _Place(out, overwrite, resume, every, workers), cache, [shown_by(progress), *observers])


@dataclass(frozen=True)
class _Place:
    """Where results go, and who trains: arguments of `sweep`."""

    out: str | Path | None
    overwrite: bool
    resume: bool
    every: CheckpointInterval | None
    workers: Ray | LocalProcesses | None


def _experiment(
    model: nn.Module,
    candidates: Sequence[Candidate],
    seeds: int | Sequence[int] | None,
    problem: Problem,
    deciding: Deciding,
    base_name: str,
    rungs: int | Sequence[int],
    widen: bool,
    notes: Sequence[str],
) -> Experiment:
    return Experiment(
        task="sweep",
        model=model,
        candidates=candidates,
        seeds=seeds_of(deciding, seeds, len(candidates)),
        problem=problem,
        base_name=base_name,
        rungs=as_counts(rungs, "rungs"),
        widen=widen,
        deciding=deciding,
        notes=[*notes, *problem.feed.notes, *unused_seeds(candidates)],
    )


@contextmanager
def _located(planned: Experiment, place: _Place) -> Generator[tuple[Experiment, RunLocation | None]]:
    """The experiment as the run directory asks for it, and that directory, or inside the block a local copy of one on
    an object store; None keeps the run in memory."""
    if place.out is None:
        yield planned, None
        return
    workers = place.workers
    if (url := url_of(place.out)) is not None:
        check_reached(url, workers.address if isinstance(workers, Ray) else None)
    with nullcontext(Path(place.out)) if url is None else run_copy(url, whole=True) as directory:
        # A function's words hold an address, which is another one in every process.
        words = {c.name: re.sub(r" at 0x[0-9a-f]+", "", str(c)) for c in planned.candidates}
        config = yaml.safe_dump({"sweep": words | {"seeds": [*planned.seeds]}}, sort_keys=False)
        location = location_of_sweep(
            directory, config, overwrite=place.overwrite, resume=place.resume, every=place.every
        )
        planned = _as_before(planned, location)
        if isinstance(workers, Ray):
            workers.hand_over(planned)
        yield planned, replace(location, workers=workers)


def _as_before(planned: Experiment, location: RunLocation) -> Experiment:
    """Seeds that are added to a finished sweep validate as the earlier ones do."""
    deciding = planned.deciding
    if not (location.resume or location.extend) or deciding.rotate is not None or not planned.can_rotate:
        return planned
    return replace(planned, deciding=replace(deciding, rotate=was_rotated(location.directory)))


def _run(planned: Experiment, place: _Place, cache: bool | str | Path, observers: Sequence[Observer]) -> Sweep:
    """Run the experiment, with the outputs below its first adapted layer cached if the user wants that."""
    check_cache(planned.problem, cached=cache is not False, apart=place.workers is not None, kept=place.out is not None)
    kept_in = Path(cache) if isinstance(cache, str) else cache
    with _located(planned, place) as (before, location), Observers(observers) as listening, ExitStack() as caches:

        def make(heard: Observers, base: Mapping[str, Tensor] | None) -> Experiment:
            reading = cached(before.model, before.candidates, before.problem, kept_in, heard.message)
            candidates, problem = caches.enter_context(reading)
            return replace(before, candidates=candidates, problem=problem)

        try:
            results, swept, files = run_experiment(make, location, listening)
        except KeyboardInterrupt as interrupt:
            if location is None or not can_resume(location.directory):
                raise
            raise KeyboardInterrupt(f"Interrupted; resume with: {location.resume_command}") from interrupt
        if location is None:
            add_next(results, len(before.seeds), lambda more, then: f"rankwise.sweep(..., seeds={then})")
        return Sweep(results, swept, tuple(files), None if location is None else location.directory)
