"""The whole content of `results.json`."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from rankwise.results.compressed import Compressed
from rankwise.results.origin import BaseInfo, DataInfo, Grid, MetricInfo, Published, RelativeTo
from rankwise.results.outcomes import AnswerResult, ConfigurationResult, RunResult
from rankwise.results.record import Record

Format = Literal["rankwise-results-2"]
FORMAT: Format = "rankwise-results-2"


class Results(Record, kw_only=True):
    """Content of results.json. Numbers are finite; null where a value is missing. Every metric is in the unit of
    metric.name; fractions are of 1.

    Args:
        complete: Whether every planned run has ended.
        task: For example digits.
        command: The command line that made this.
        started: ISO 8601 time.
        config_hash: Hash of the complete configuration.
        seconds: Time for the whole sweep.
        versions: Versions of python, torch, rankwise, ...
        device: What the runs ran on.
        published: Published figures, shown with ours.
        data: Size and SHA-256 of each split.
        plan: Settings, seeds and learning rates, and what a search found: what a longer sweep is compared with.
        grid: What was tried.
        metric: What all runs are judged by.
        base: The base model, before fine-tuning.
        runs: Every training run.
        configurations: Every method and rank, at its chosen learning rate.
        relative_to: What the relative columns are relative to.
        notes: Sentences to show under the table.
        answer: The recommendation; null where the sweep did not get that far.
        compressed: Trained adapters cut to smaller ranks, and which adapter to ship; not there where none was cut.
    """

    format: Format
    complete: bool
    task: str
    command: str
    started: str
    config_hash: str
    seconds: float | None
    versions: dict[str, str | None]
    device: str
    published: Published | None
    data: DataInfo
    plan: dict[str, Any] | None = None
    grid: Grid
    metric: MetricInfo
    base: BaseInfo
    runs: list[RunResult]
    configurations: list[ConfigurationResult]
    relative_to: RelativeTo | None
    notes: list[str]
    answer: AnswerResult | None
    compressed: Compressed | UnsetType = UNSET

    def configuration(self, name: str | None) -> ConfigurationResult | None:
        """The configuration of this name."""
        return next((c for c in self.configurations if c.name == name), None)

    def adapter_run(self, name: str) -> tuple[RunResult, str]:
        """The run of an adapter, and in words what it is cut from: of a trained one "".

        Of one that was cut it is the run that trained it, with the smaller adapter's figures.

        Raises:
            KeyError: There is no such adapter.
        """
        runs = {run.name: run for run in self.runs}
        for c in self.compressed.configurations if self.compressed else []:
            for one in (one for one in c.runs if one.name == name):
                figures = {"metric": one.metric, "validation_metric": one.validation_metric, "r": c.r}
                return replace(runs[one.trained], **figures, trainable_parameters=c.parameters), c.label
        return runs[name], ""
