"""The origin of results: data, metric, base, the grid, published figures."""

from typing import Any

from msgspec import UNSET, UnsetType

from rankwise.results.kinds import Count, Method, Status
from rankwise.results.record import OpenRecord, Record


class SplitSize(OpenRecord, kw_only=True):
    """One split of the data.

    Args:
        n: Examples.
        sha256: Of its content.
        others: More where known.
    """

    n: Count
    sha256: str | None = None
    others: dict[str, Any] = {}  # noqa: RUF012, msgspec copies it


class DataInfo(OpenRecord, kw_only=True):
    """The data.

    Args:
        others: The data set's name and more where known.
    """

    others: dict[str, Any] = {}  # noqa: RUF012
    train: SplitSize
    validation: SplitSize
    test: SplitSize

    @property
    def splits(self) -> dict[str, SplitSize]:
        """Each split by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class SearchedRate(Record, kw_only=True):
    """One short run of the search for learning rates.

    Args:
        configuration: Name of the configuration whose rate it tried.
        lr: The learning rate.
        seed: Of the run.
        validation_metric: The metric on validation data; null where the run didn't finish.
        steps: Steps taken.
        status: How it ended.
    """

    configuration: str
    lr: float | None
    seed: int | None = None
    validation_metric: float | None = None
    steps: int | None = None
    status: Status | None = None


class Grid(OpenRecord, kw_only=True):
    """The grid of the sweep.

    Args:
        ranks: Of LoRA.
        lrs: Learning rates of LoRA.
        baseline_lrs: Learning rates of full fine-tuning.
        seeds: Of the runs that count.
        search: What a search for learning rates tried, where there was one.
        others: What a task adds.
    """

    ranks: list[int] | UnsetType = UNSET
    lrs: list[float] | UnsetType = UNSET
    baseline_lrs: list[float] | UnsetType = UNSET
    seeds: list[int] | UnsetType = UNSET
    search: list[SearchedRate] | UnsetType = UNSET
    others: dict[str, Any] = {}  # noqa: RUF012


class MetricInfo(Record, kw_only=True):
    """The metric of all runs.

    Args:
        name: For example accuracy.
        higher_is_better: False for losses and perplexity.
    """

    name: str
    higher_is_better: bool


class BaseInfo(OpenRecord, kw_only=True):
    """The base model, before fine-tuning.

    Args:
        name: The folder or hub name.
        sha256: Of its weights.
        parameters: How many numbers it has.
        metric: The metric on test data; null where the base can't do the task.
        validation_metric: The metric on validation data.
        others: Further metrics on test data by name.
        on_pareto_front: Whether nothing does as well with no more parameters than 0.
    """

    name: str
    sha256: str | None
    parameters: int | None
    metric: float | None
    validation_metric: float | None = None
    others: dict[str, Any] = {}  # noqa: RUF012
    on_pareto_front: bool | None = None


class RelativeTo(Record, kw_only=True):
    """The reference of the relative columns.

    Args:
        label: In words.
    """

    label: str
    metric: float | None
    trainable_parameters: int | None


class PublishedRow(Record, kw_only=True):
    """One line of somebody else's table.

    Args:
        label: In words.
        configuration: Name of the configuration it is shown beside, where method and r do not tell.
    """

    label: str
    method: Method
    r: int | None
    trainable_parameters: int | None
    metric: float | None
    configuration: str | UnsetType | None = UNSET
    relative_parameters: float | None
    relative_metric: float | None


class Published(Record, kw_only=True):
    """Published figures, shown with ours.

    Args:
        source: Where the numbers come from.
        note: One sentence on how far they can be trusted.
        rows: The table.
    """

    source: str
    note: str | None
    rows: list[PublishedRow]
