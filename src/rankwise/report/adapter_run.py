"""The run that an adapter's folder came from."""

from dataclasses import dataclass
from pathlib import Path

from rankwise.errors import OutputError
from rankwise.report import numbers
from rankwise.results import Results, read_results


@dataclass(frozen=True)
class AdapterRun:
    """One adapter in its run's results.

    Args:
        directory: Of the run.
        command: The command line that made it.
        started: ISO 8601 time.
        task: For example classify.
        metric_name: What all runs were judged by.
        base_metric: The base's test metric; None where the base can't do the task.
        training_examples: How many there were.
        name: The training run's.
        configuration: Its configuration's name.
        lr: Its learning rate.
        seed: Its seed.
        epochs: Passes over the training data.
        steps: Steps taken.
        status: How it ended.
        metric: The adapter's test metric; None where it was not taken.
    """

    directory: str
    command: str
    started: str
    task: str
    metric_name: str
    base_metric: float | None
    training_examples: int
    name: str
    configuration: str | None
    lr: float | None
    seed: int | None
    epochs: float | None
    steps: int | None
    status: str
    metric: float | None


def _results_of(adapter: Path) -> Results | None:
    """The results of the run directory that an adapter lies in; None where it lies in none."""
    try:
        return read_results(adapter.resolve().parent.parent / "results.json")
    except OutputError:
        return None


def head_alone(adapter: Path) -> str | None:
    """How a head alone did over the frozen base in the run of an adapter, in a sentence; None where none was trained.

    It is what the base can do at labels for which it has no head.
    """
    results = _results_of(adapter)
    head = None if results is None else next((c for c in results.configurations if c.method == "head"), None)
    if results is None or head is None or head.mean is None:
        return None
    name, interval = numbers.words(results.metric.name), ""
    if head.interval is not None:
        interval = f" (95% interval {numbers.interval_text(head.interval)})"
    return f"With a head trained over it, it has a test {name} of {numbers.metric(head.mean)}{interval} in the run."


def run_of_adapter(adapter: Path) -> AdapterRun | None:
    """Read what the run directory that an adapter lies in says of it; None where it lies in none."""
    folder = adapter.resolve()
    directory = folder.parent.parent
    results = _results_of(adapter)
    if results is None:
        return None
    run = next((run for run in results.runs if run.adapter == f"adapters/{folder.name}"), None)
    if run is None:
        return None
    return AdapterRun(
        directory=str(directory),
        command=results.command,
        started=results.started,
        task=results.task,
        metric_name=results.metric.name,
        base_metric=results.base.metric,
        training_examples=results.data.train.n,
        name=run.name,
        configuration=run.configuration,
        lr=run.lr,
        seed=run.seed,
        epochs=run.epochs,
        steps=run.steps,
        status=run.status,
        metric=run.metric,
    )
